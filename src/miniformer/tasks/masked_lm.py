"""Masked language modeling: predicts masked tokens of a text from both sides (BERT).

text      | B a b c d e
inputs    | B a M c x e      M: the mask token; x: a random token
labels    | . . b . d .      predicted tokens; some of them are unchanged in the inputs
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from miniformer.config import (
    GenerationConfig,
    InputError,
    TransformerConfig,
    UserError,
    option,
)
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, concat_batches, mean
from miniformer.tasks.common.input_encoding import (
    collate_inputs,
    ids_to_array,
    input_validator,
    model_inputs,
)
from miniformer.tasks.common.losses import TokenLossRecorder, example_token_losses, token_loss
from miniformer.tasks.common.record_results import RecordResults, sum_by_record
from miniformer.tasks.common.resampling import weighted_mean
from miniformer.tasks.common.sequence_input import InputTask

MASK_TOKEN = "[MASK]"  # marks a masked token in a user's text
# Of the predicted tokens; the rest are unchanged (Devlin et al. 2019).
_MASK_PROB, _RANDOM_PROB = 0.8, 0.1
_TOP_K = 5  # predictions for each mask


@dataclasses.dataclass(frozen=True)
class MaskedLM(InputTask):
    """The task of `{"text": ...}` records and plain text, or of other tasks' `{"input": ...}`.

    Args:
        field: the record field to read: text, split into windows of `seq_len`; or input, a text or
            a pair of texts.
        mask_share: fraction of tokens to predict, drawn anew in each epoch.
        input_kind, input_dim, max_input_len, bpe_dropout, shared_token_types, standardize,
            feature_means, feature_stds: see `InputTask`.
    """

    name: ClassVar[str] = "masked_lm"
    loss_unit: ClassVar[str] = "nats/token"
    maximize: ClassVar[frozenset[str]] = frozenset({"accuracy"})
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy")

    field: str = option("text", choices=("text", "input"))
    mask_share: float = option(0.15, above=0.0, high=0.9)

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if self.field == "text" and self.input_kind not in (None, "text"):
            problems.append(
                f"input_kind={self.input_kind} has no effect with field=text; set field=input"
            )
        if self.input_kind == "features" or self.input_dim is not None or not self.standardize:
            problems.append("masked_lm needs texts; input_dim and standardize are for vectors")
        return problems

    @property
    def schema(self) -> Schema:
        kind = "text" if self.field == "text" else self.input_kind
        return {self.field: input_validator(kind, self.input_dim)}

    def fit(self, records: Any) -> MaskedLM:
        if self.field == "text":
            return dataclasses.replace(self, input_kind="text")
        first = next(islice(iter(records), 1))["input"]
        if schema.input_kind(first) == "features":
            raise UserError(f"{records.name}: task=masked_lm needs texts, not vectors")
        return super().fit(records)

    def is_empty(self, record: Record) -> bool:
        return not any(text.strip() for text in self.texts(record))

    def texts(self, record: Record) -> Iterator[str]:
        yield from super().texts({"input": record[self.field]})

    def num_outputs(self) -> None:
        return None

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        if config.causal:
            raise UserError(
                "model_config: causal must be false for masked_lm, which attends to both sides; "
                "for a causal model use task=language_modeling"
            )
        assert tokenizer is not None
        mask_token_id(tokenizer)
        super().check(config, tokenizer)

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples with `inputs`: see `encode_inputs`, or windows of a text; and `record`."""
        assert tokenizer is not None
        if self.field == "input":
            examples = self.encode_inputs(records, tokenizer, seq_len)
            examples = [{**example, "record": n} for n, example in enumerate(examples)]
        else:
            rows = tokenizer.encode_batch([record["text"] for record in records])
            examples = [
                {"inputs": window, "record": n}
                for n, (record, ids) in enumerate(zip(records, rows, strict=True))
                for window in _split_windows(ids, record, tokenizer, seq_len)
            ]
        special = special_token_ids(tokenizer)
        return [e for e in examples if not np.isin(e["inputs"], special).all()]

    def collate_fn(self, tokenizer: Tokenizer | None, *, seq_len: int, training: bool) -> CollateFn:
        assert tokenizer is not None
        collate = partial(
            collate_masked,
            mask_share=self.mask_share,
            mask=mask_token_id(tokenizer),
            special=special_token_ids(tokenizer),
            vocab_size=tokenizer.vocab_size,
        )
        return self.apply_bpe_dropout(collate, tokenizer, seq_len)

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats of the masked tokens, and their number."""
        return token_loss(model, self._features(model, batch), batch["labels"])

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        return example_token_losses(model, self._features(model, batch), batch["labels"])

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        stats = self._token_stats(model, batch)
        return {**stats, "correct": stats["correct"].sum()}

    def _token_stats(self, model: Any, batch: Batch) -> BatchStats:
        """Loss, count, and `correct`, bool [N] of the masked tokens."""
        features = self._features(model, batch)
        loss, count = token_loss(model, features, batch["labels"])
        labeled = batch["labels"] != IGNORE_INDEX
        predictions = model.logits(features[labeled]).argmax(-1)
        return {"loss": loss, "count": count, "correct": predictions == batch["labels"][labeled]}

    def record_step(self, model: Any, batch: Batch) -> BatchStats:
        recorder = TokenLossRecorder(model)
        stats = self._token_stats(recorder, batch)
        token_stats = {**recorder.stats(batch), "token_correct": stats["correct"]}
        return {**stats, "correct": stats["correct"].sum(), **token_stats}

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults:
        """Results of each text; there are no predictions or truths."""
        tokens, losses, correct = (
            concat_batches(batch_stats, name).numpy()
            for name in ("token_records", "token_losses", "token_correct")
        )
        indices, loss, count, hits = sum_by_record(tokens, losses, np.ones(len(losses)), correct)
        nothing = [None] * len(indices)
        statistics = {"accuracy": hits / count}
        return RecordResults(indices, nothing, nothing, loss / count, count, statistics=statistics)

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        loss = super().resampled_metrics(results, counts)["loss"]
        accuracy = weighted_mean(counts, results.statistics["accuracy"], results.weights)
        perplexity = np.exp(np.minimum(loss, 700.0))
        return {"loss": loss, "perplexity": perplexity, "accuracy": accuracy}

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss in nats per masked token, perplexity, and accuracy."""
        loss = mean(batch_stats, "loss", "count")
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": mean(batch_stats, "correct", "count"),
        }

    def usage_snippet(self) -> str:
        return f'print(m.predict(["... {MASK_TOKEN} ..."]))'

    def usage_command(self, directory: str) -> str:
        return f'predict {directory} "your text with a {MASK_TOKEN}"'

    @torch.inference_mode()
    def predict(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        inputs: Sequence[Any],
        options: GenerationConfig,
        *,
        truncate: bool = False,
        batch_size: int | None = None,
    ) -> list[Any]:
        """For each text: `text` with masks filled, and `gaps`, the best tokens of each mask.

        Each mask stands for one token and is predicted independently of the others.
        """
        assert tokenizer is not None
        device = next(model.parameters()).device
        frame, answers = tokenizer.input_template, []
        for row in self._encode_masked_texts(
            inputs, tokenizer, model.config.max_seq_len, truncate=truncate
        ):
            masks = np.flatnonzero(row == mask_token_id(tokenizer))
            features = model.features(torch.from_numpy(row)[None].to(device))
            probs = model.logits(features[0, masks]).float().softmax(-1).cpu()  # [masks, V]
            scores, best = probs.topk(min(_TOP_K, probs.shape[1]))
            predictions = [
                [{"token": tokenizer.decode([i]), "score": s} for i, s in zip(*top, strict=True)]
                for top in zip(best.tolist(), scores.tolist(), strict=True)
            ]
            row[masks] = best[:, 0].numpy()
            filled = row[len(frame.prefix) : len(row) - len(frame.suffix)]
            answers.append({"text": tokenizer.decode(filled.tolist()), "gaps": predictions})
        return answers

    def _encode_masked_texts(
        self, inputs: Sequence[Any], tokenizer: Tokenizer, max_length: int, *, truncate: bool
    ) -> list[np.ndarray]:
        """Token ids of texts with mask tokens, int [T] each."""
        frame, mask = tokenizer.input_template, mask_token_id(tokenizer)
        max_ids = max(0, max_length - len(frame.prefix) - len(frame.suffix))
        rows, problems = [], {}
        for number, text in enumerate(inputs):
            if not isinstance(text, str) or MASK_TOKEN not in text:
                problems[number] = f"must be a text with a {MASK_TOKEN}, not {text!r}"
                continue
            ids: list[int] = []
            for part in tokenizer.encode_batch(text.split(MASK_TOKEN)):
                ids += [mask, *part]
            ids = ids[1:][:max_ids] if truncate else ids[1:]
            if len(ids) > max_ids:
                problems[number] = (
                    f"is {len(ids) + max_length - max_ids} tokens long; the model reads at most "
                    f"{max_length}; shorten it, or truncate it"
                )
            elif mask not in ids:
                problems[number] = (
                    f"has no {MASK_TOKEN} within the {max_length} tokens that the model reads"
                )
            rows.append(np.array([*frame.prefix, *ids, *frame.suffix]))
        if problems:
            raise InputError(problems)
        return rows

    def _features(self, model: Any, batch: Batch) -> Tensor:
        out: Tensor = model.features(**model_inputs(model, batch))
        return out


def mask_token_id(tokenizer: Tokenizer) -> int:
    """Id of the mask token: the tokenizer's own, or its padding token, which is unused otherwise.

    Raises:
        UserError: the tokenizer has neither.
    """
    names = ("[MASK]", "<mask>", "<|mask|>", "<|pad|>", "[PAD]", "<pad>")
    for name in names:
        token_id = tokenizer.backend.token_to_id(name)
        if token_id is not None:
            return int(token_id)
    raise UserError(
        f"the tokenizer has no mask token: none of {', '.join(names)}; train one with "
        "tokenizer=bpe, or add a token to its file"
    )


def collate_masked(
    examples: list[Example],
    random: np.random.Generator | None,
    *,
    mask_share: float,
    mask: int,
    special: np.ndarray,
    vocab_size: int,
) -> Batch:
    """Collates with `collate_inputs`, masks tokens, and adds `labels`, int64 [B, T].

    Args:
        examples: with `inputs`.
        random: draws the masked tokens; None: a fixed seed.
        mask_share: fraction of each row's tokens to predict, at least one token.
        mask: id of the mask token.
        special: ids that are never predicted.
        vocab_size: upper limit of random replacement ids.
    """
    random = np.random.default_rng(0) if random is None else random
    batch = collate_inputs(examples)
    inputs = batch["inputs"].numpy()  # [B, T]
    maskable = ~np.isin(inputs, special)
    if "attention_mask" in batch:
        maskable &= batch["attention_mask"].numpy()
    num_masked = np.maximum(1, np.rint(mask_share * maskable.sum(1)))  # of each row
    rank = np.where(maskable, random.random(inputs.shape), np.inf).argsort(1).argsort(1)
    masked = maskable & (rank < num_masked[:, None])
    batch["labels"] = torch.from_numpy(np.where(masked, inputs, IGNORE_INDEX))
    u = random.random(inputs.shape)
    random_ids = random.integers(vocab_size, size=inputs.shape)
    replacement = np.where(
        u < _MASK_PROB, mask, np.where(u < _MASK_PROB + _RANDOM_PROB, random_ids, inputs)
    )
    batch["inputs"] = torch.from_numpy(np.where(masked, replacement, inputs))
    return batch


def special_token_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of special tokens, which are never masked."""
    frame = tokenizer.input_template
    around = [*frame.prefix, *frame.separator, *frame.suffix]
    return np.unique([tokenizer.eos_id, mask_token_id(tokenizer), *around])


def _split_windows(
    ids: list[int], record: Record, tokenizer: Tokenizer, seq_len: int
) -> Iterator[np.ndarray]:
    """Yields windows of at most `seq_len` tokens and nearly equal length."""
    frame = tokenizer.input_template
    prefix = [] if record.get("continues") else frame.prefix
    row = ids_to_array([*prefix, *ids, *frame.suffix], tokenizer)
    yield from np.array_split(row, max(1, -(-len(row) // seq_len)))
