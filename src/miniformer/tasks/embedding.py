"""Embedding: a vector for each input, for imported encoders without a task head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading.records import Records
from miniformer.tasks.common.input_encoding import model_inputs
from miniformer.tasks.common.sequence_input import InputTask


@dataclasses.dataclass(frozen=True)
class EmbeddingTask(InputTask):
    """The task `embedding` of imported encoders. It cannot be trained.

    Args:
        input_kind, input_dim, max_input_len, standardize, feature_means, feature_stds: see
            `InputTask`.
    """

    name: ClassVar[str] = "embedding"

    def fit(self, records: Records) -> Self:
        raise UserError(
            "task=embedding is for imported encoders and cannot be trained; use "
            "language_modeling, classification, regression or seq2seq"
        )

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Embeddings, [B, D]."""
        return embed_batch(model, batch)

    def format_outputs(self, outputs: Tensor, inputs: Sequence[Any]) -> list[Any]:
        """The embedding of each input, as a list of numbers."""
        rows: list[Any] = outputs.tolist()
        return rows


def embed_batch(model: Any, batch: Batch) -> Tensor:
    """Embeddings of a batch of `collate_inputs`, [B, D]."""
    out: Tensor = model.embed(**model_inputs(model, batch))
    return out
