"""Encoding: a vector for each input. What an imported encoder without a head for a task is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading.records import Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.inputs import model_inputs, predict_batches
from miniformer.tasks.common.sequence_input import InputTask


@dataclasses.dataclass(frozen=True)
class EmbeddingTask(InputTask):
    """Nothing is learnt for it, so there are no records of it.

    Args:
        input_kind, input_dim, standardize, feature_means, feature_stds: see `InputTask`.
    """

    name: ClassVar[str] = "embedding"

    def fit(self, records: Records) -> Self:
        raise UserError(
            "task=embedding is of imported encoders and cannot be learnt; train for "
            "language_modeling, classification, regression or seq2seq"
        )

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """The model's vectors, [B, D]."""
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
        """The vector of each input, as a list of numbers."""
        batches = predict_batches(self, model, tokenizer, inputs, truncate=truncate)
        return [row for some in batches for row in some.tolist()]


def embed_batch(model: Any, batch: Batch) -> Tensor:
    """The model's vectors of a batch of `collate_inputs`, [B, D]."""
    out: Tensor = model.embed(**model_inputs(model, batch))
    return out
