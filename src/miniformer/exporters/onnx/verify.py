"""Comparison of graphs with the model, on ragged batches in onnxruntime.

Logits are compared for several sizes of batches with padding on either side, a decoder's for a
prompt and two more steps; texts, greedily from prompts of unequal lengths.

Letters: B batch, T length, S source length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.data.batching.length_bucketing import Batch
from miniformer.exporters.destination import DifferenceError
from miniformer.exporters.onnx.session import OnnxModel
from miniformer.exporters.source import Source
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.token_classification import TokenClassification

LIMIT = 1e-3  # largest difference of float32 logits, for logits up to 1
_BATCH_SIZES = (1, 2, 5)
_LENGTHS = (1, 7, 24)
_NEW_TOKENS = 12


class Comparison(NamedTuple):
    """Differences between graphs and the model.

    Args:
        difference: largest absolute difference of logits.
        scale: largest absolute logit of the model.
        texts: greedy texts that were compared.
        equal_texts: those that are equal, or differ where both tokens are equally likely.
    """

    difference: float
    scale: float
    texts: int
    equal_texts: int

    def check(self) -> None:
        """Raises a DifferenceError if float32 graphs differ by more than rounding."""
        if not self.difference <= LIMIT * max(1.0, self.scale) or self.equal_texts < self.texts:
            raise DifferenceError(
                f"the exported graphs differ from the model: {self.describe()}; at most {LIMIT} is "
                "allowed. Nothing is written; please report this model's config.json"
            )

    def describe(self) -> str:
        """The differences as a text."""
        text = f"largest difference of outputs {self.difference:.1e}"
        return text + (
            f", {self.equal_texts} of {self.texts} greedy texts equal" * (self.texts > 0)
        )


@torch.inference_mode()
def compare(source: Source, graphs: OnnxModel) -> Comparison:
    """Compares graphs with the model that they were written of."""
    random = torch.Generator().manual_seed(0)
    pairs = _decoder_pairs if "decoder" in graphs.sessions else _model_pairs
    difference, scale = 0.0, 0.0
    for expected, actual in pairs(source, graphs, random):
        if not bool(torch.isfinite(actual).all()):
            difference = float("inf")
        difference = max(difference, float((expected - actual).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    if "decoder" not in graphs.sessions:
        return Comparison(difference, scale, 0, 0)
    return Comparison(difference, scale, *_compare_texts(source, graphs, random))


def make_batch(
    source: Source, rows: int, length: int, random: torch.Generator, left: bool
) -> Batch:
    """Random inputs of a model with padding on one side: `inputs`, `attention_mask` and so on.

    Args:
        source: the model.
        rows, length: B, T; the first row has no padding.
        random: draws the inputs.
        left: padding is on the left.
    """
    config = source.config
    lengths = torch.randint(1, length + 1, (rows, 1), generator=random)
    lengths[0] = length
    columns = torch.arange(length)
    mask = columns >= length - lengths if left else columns < lengths
    batch: Batch = {"inputs": make_inputs(source, rows, length, random), "attention_mask": mask}
    if isinstance(source.task, TokenClassification):
        batch["word_starts"] = columns.repeat(rows, 1)
        batch["word_lengths"] = mask.long()
    elif config.token_types is not None:
        types = torch.randint(0, config.token_types // 2 + 1, (1,), generator=random)
        batch["token_types"] = (columns >= length // 2).long().repeat(rows, 1) * types.clamp(0, 1)
    return batch


def make_inputs(source: Source, rows: int, length: int, random: torch.Generator) -> Tensor:
    """Random token ids, int64 [B, T], or vectors, float [B, T, F], for the first graph."""
    config = source.config
    if config.input_dim is not None:
        return torch.randn(rows, length, config.input_dim, generator=random)
    size = config.source_vocab_size or config.vocab_size
    return torch.randint(0, size, (rows, length), generator=random)


def _sizes(source: Source) -> Iterator[tuple[int, int, bool]]:
    """Rows, length and side of the padding of the batches."""
    for rows in _BATCH_SIZES:
        for length in _LENGTHS:
            for left in (False, True):
                yield rows, min(length, source.config.max_seq_len), left


def _model_pairs(
    source: Source, graphs: OnnxModel, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs of the model and of the graph."""
    model, task = source.model, source.task
    for rows, length, left in _sizes(source):
        batch = make_batch(source, rows, length, random, left)
        actual, mask = graphs.outputs(batch), batch["attention_mask"]
        if isinstance(task, InputTask | TokenClassification) and not isinstance(task, MaskedLM):
            expected = task.logits(model, batch)
        else:
            types = batch.get("token_types")
            expected = model(batch["inputs"], mask, token_types=types)
        yield (expected, actual) if expected.dim() == 2 else (expected[mask], actual[mask])


def _decoder_pairs(
    source: Source, graphs: OnnxModel, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of all tokens at once by the model, and in three steps by the graph."""
    model = source.model
    for rows, length, left in _sizes(source):
        batch = make_batch(source, rows, length, random, left)
        mask, encoded = batch["attention_mask"], None
        arguments: tuple[Any, ...] = ()
        ids = torch.randint(0, source.config.vocab_size, (rows, length), generator=random)
        if isinstance(model, Seq2SeqTransformer):
            arguments = (model.encode(batch["inputs"], mask),)
            encoded = graphs.encode(batch["inputs"], mask)
            mask = mask.flip(0)  # the target's padding is not that of the source
        cache = model.new_cache(rows, source.config.max_seq_len, kind="full")
        features = model.features(ids, *arguments, mask, cache=cache)
        expected, past, parts = model.logits(features), graphs.empty_past(rows), []
        seen = torch.zeros(rows, 1, dtype=torch.bool)
        ends = sorted({max(1, length - 2), max(1, length - 1), length})
        for start, end in zip([0, *ends], ends, strict=False):
            seen = torch.cat((seen, mask[:, start:end]), 1)
            logits, past = graphs.step(ids[:, start:end], seen, past, encoded)
            parts.append(logits)
        yield expected[mask], torch.cat(parts, 1)[mask]


def _compare_texts(source: Source, graphs: OnnxModel, random: torch.Generator) -> tuple[int, int]:
    """Number of greedy texts, and of those that are equal."""
    model, rows, config = source.model, 3, source.config
    length = min(6, max(1, config.max_seq_len - 1))
    new = min(_NEW_TOKENS, config.max_seq_len - length)
    batch = make_batch(source, rows, length, random, left=True)
    mask, encoded = batch["attention_mask"], None
    arguments: tuple[Any, ...] = ()
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=random)
    if isinstance(model, Seq2SeqTransformer):
        arguments = (model.encode(batch["inputs"], mask),)
        encoded = graphs.encode(batch["inputs"], mask)
    cache = model.new_cache(rows, config.max_seq_len, kind="full")
    past, seen = graphs.empty_past(rows), torch.nn.functional.pad(mask, (1, 0))
    is_equal = torch.ones(rows, dtype=torch.bool)
    is_open = is_equal.clone()  # equal so far
    for _ in range(new):
        expected = model.logits(model.features(ids, *arguments, mask, cache=cache)[:, -1])
        last = torch.tensor([ids.shape[1] - 1])
        logits, past = graphs.step(ids, seen, past, encoded, last)
        chosen, exported = expected.argmax(-1), logits[:, 0].argmax(-1)
        margin: Any = expected.gather(1, chosen[:, None]) - expected.gather(1, exported[:, None])
        is_equal &= ~is_open | (chosen == exported) | (margin[:, 0] < LIMIT)
        is_open &= chosen == exported
        ids, mask = chosen[:, None], torch.ones(rows, 1, dtype=torch.bool)
        seen = torch.cat((seen, mask), 1)
    return rows, int(is_equal.sum())
