"""Prefix language modeling: an encoder-decoder model continues the beginning of a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from miniformer.config import TransformerConfig, UserError
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn, pad_sequences
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.reading.records import TEXT_SCHEMA, Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput
from miniformer.tasks.base import BatchStats, Task, concat_batches
from miniformer.tasks.common.input_encoding import ids_to_array
from miniformer.tasks.common.record_results import sum_by_record
from miniformer.tasks.common.seq2seq_batch import seq2seq_example_losses, seq2seq_loss
from miniformer.tasks.language_modeling import LanguageModeling, require_null


@dataclasses.dataclass(frozen=True)
class PrefixLanguageModeling(LanguageModeling):
    """Prefix language modeling: the encoder reads the prefix of a text, the decoder the rest.

    document  | B a b c d e f B          B: the boundary token (BOS and EOS)
    source    | B a b c                  split at random in training, in the middle in validation
    target    | B d e f                  starts with the boundary
    labels    | d e f B                  only these are predicted and counted

    The source contains no label. A document longer than `seq_len` is split into windows, each of
    which is split into source and target; no window spans two documents.
    """

    token_tensors: ClassVar[dict[str, str]] = {"source": "source_mask", "target": "labels"}

    @property
    def schema(self) -> Schema:
        return TEXT_SCHEMA

    def fit(self, records: Records) -> Self:
        return self

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if self.packing != "wrapped":
            problems.append(
                f"packing={self.packing} is for causal models; leave it out, or set model=decoder"
            )
        if self.chat_template is not None:
            problems.append(
                "chat_template is for causal models; leave it out, or set model=decoder"
            )
        return problems

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        return Task.model_config(self, overrides, tokenizer)

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        require_null(config, ("input_dim", "input", "output_dim"), "language modeling")
        if config.max_seq_len < 2:
            raise UserError("model_config: max_seq_len must be at least 2, a prefix and a label")
        Task.check(self, config, tokenizer)

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples with `ids` of a window, two tokens or more, its `bytes` and its `record`."""
        assert tokenizer is not None
        examples = []
        for number, example in enumerate(super().encode(records, tokenizer, seq_len)):
            ids = example["ids"]
            has_eos = tokenizer.bos_id != tokenizer.eos_id  # `super().encode` has appended EOS
            if self.prepend_bos and not has_eos:
                ids = np.append(ids, ids_to_array([tokenizer.eos_id], tokenizer))
            per_token = example["bytes"] / len(ids)
            examples += [
                {"ids": window, "bytes": per_token * len(window), "record": number}
                for window in _split_windows(ids, max(2, seq_len))
            ]
        return examples

    batcher = Task.batcher  # length buckets

    def collate_fn(self, tokenizer: Tokenizer | None, *, seq_len: int, training: bool) -> CollateFn:
        assert tokenizer is not None
        return partial(collate_prefixes, boundary_id=tokenizer.eos_id)

    def record_step(self, model: Any, batch: Batch) -> BatchStats:
        return {**super().record_step(model, batch), "row_bytes": batch["row_bytes"]}

    def _record_bytes(
        self, batch_stats: Sequence[BatchStats], records: Records, indices: np.ndarray
    ) -> np.ndarray:
        rows, n_bytes = (concat_batches(batch_stats, name) for name in ("records", "row_bytes"))
        return sum_by_record(rows.numpy(), n_bytes.numpy())[1]

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `seq2seq_loss`."""
        return seq2seq_loss(model, batch, self.label_smoothing)

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        return seq2seq_example_losses(model, batch, self.label_smoothing)

    def generation_inputs(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> list[GenerationInput]:
        decoder_start = [tokenizer.eos_id]
        rows = self.encode_prompts(prompts, tokenizer)
        if truncate:
            rows = [row[-model.config.max_seq_len :] for row in rows]
        return [GenerationInput(decoder_start, row) for row in rows]


def collate_prefixes(
    examples: list[Example], random: np.random.Generator | None, *, boundary_id: int
) -> Batch:
    """Splits windows into source and target at one random fraction; `random=None`: 1/2."""
    fraction = 0.5 if random is None else random.random()
    sources, targets, labels, row_bytes = [], [], [], []
    for example in examples:
        ids = example["ids"].astype(np.int64)
        cut = min(max(1, round(fraction * len(ids))), len(ids) - 1)
        sources.append(ids[:cut])
        labels.append(ids[cut:])
        targets.append(np.concatenate(([boundary_id], ids[cut:-1])))
        row_bytes.append(float(example["bytes"]) * (len(ids) - cut) / len(ids))
    source, mask = pad_sequences(sources)
    batch: Batch = {
        "source": source,
        "target": pad_sequences(targets)[0],
        "labels": pad_sequences(labels, IGNORE_INDEX)[0],
        "bytes": sum(row_bytes),
        "row_bytes": torch.tensor(row_bytes),
    }
    return batch if mask is None else {**batch, "source_mask": mask}


def _split_windows(ids: np.ndarray, max_length: int) -> list[np.ndarray]:
    """Windows of nearly equal length; none for a single token, which has no label."""
    if len(ids) < 2:
        return []
    return list(np.array_split(ids, -(-len(ids) // max_length)))
