"""Embedding: a vector for each input, for imported encoders without a task head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading.records import Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.input_encoding import model_inputs
from miniformer.tasks.common.inputs import predict_batches
from miniformer.tasks.common.sequence_input import InputTask


@dataclasses.dataclass(frozen=True)
class EmbeddingTask(InputTask):
    """The task `embedding` of imported encoders. It cannot be trained.

    Args:
        input_kind, input_dim, standardize, feature_means, feature_stds: see `InputTask`.
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

    def predict(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        inputs: Sequence[Any],
        options: GenerationConfig,
        *,
        truncate: bool = False,
    ) -> list[Any]:
        """The embedding of each input, as a list of numbers."""
        batches = predict_batches(self, model, tokenizer, inputs, truncate=truncate)
        return [row for batch in batches for row in batch.tolist()]


def embed_batch(model: Any, batch: Batch) -> Tensor:
    """Embeddings of a batch of `collate_inputs`, [B, D]."""
    out: Tensor = model.embed(**model_inputs(model, batch))
    return out
