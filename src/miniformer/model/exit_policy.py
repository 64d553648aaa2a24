"""Early exit of classifiers: a record leaves after the first layer that is confident enough.

The final norm, the pooling and the head read the output of each layer, as they read that of the
last one. The confidence of an exit is the largest probability. Records that have left are no longer
in the batch.

Letters: B batch, T length, D model width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniformer.model.embedding import output_mask
from miniformer.model.head import pool_sequences


class ExitPolicy:
    """Exits of a classifier at a threshold; a model has it as the attribute `exit_policy`.

    Args:
        threshold: smallest confidence with which a record leaves before the last layer.

    Attributes:
        num_records, num_layers: records so far, and the sum of the layers that they used.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.num_records = self.num_layers = 0

    def __str__(self) -> str:
        mean = self.num_layers / max(1, self.num_records)
        return f"early exit: {mean:.2f} layers on average for {self.num_records:,} records"

    def classify(
        self,
        model: Any,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Outputs of the exit of each record, [B, C]; see `Transformer.classify`."""
        batch = _Batch(model, inputs, attention_mask, token_types)
        rows, results = torch.arange(len(inputs), device=inputs.device), None
        self.num_records += len(inputs)
        while True:
            outputs = batch.outputs()
            leaves = outputs.float().softmax(-1).amax(-1) >= self.threshold
            if batch.is_complete:
                leaves = torch.ones_like(leaves)
            if results is None:
                results = torch.empty_like(outputs)
            results[rows[leaves]] = outputs[leaves]
            self.num_layers += batch.depth * int(leaves.sum())
            if bool(leaves.all()):
                return results
            rows = rows[~leaves]
            if bool(leaves.any()):
                batch.select(~leaves)
            batch.run_layer()


def exit_outputs(
    model: Any,
    inputs: Tensor,
    attention_mask: Tensor | None = None,
    token_types: Tensor | None = None,
) -> Tensor:
    """Outputs of all exits, [layers, B, C]; the last ones are those of `Transformer.classify`."""
    batch = _Batch(model, inputs, attention_mask, token_types)
    outputs = [batch.outputs()]
    while not batch.is_complete:
        batch.run_layer()
        outputs.append(batch.outputs())
    return torch.stack(outputs)


class _Batch:
    """A batch between two layers."""

    def __init__(
        self,
        model: Any,
        inputs: Tensor,
        attention_mask: Tensor | None,
        token_types: Tensor | None,
    ) -> None:
        self.model, self.depth = model, 1
        columns = {"inputs": inputs, "attention_mask": attention_mask, "token_types": token_types}
        self.columns = columns
        self.mask = output_mask(model.embedding, attention_mask)
        self.x = model.features(inputs, attention_mask, token_types=token_types, stop=1)

    @property
    def is_complete(self) -> bool:
        return self.depth == len(self.model.layers)

    def outputs(self) -> Tensor:
        """Outputs of the exit after the layers so far, [B, C]."""
        model = self.model
        features = model.final_norm(self.x)
        pooled = pool_sequences(features, self.mask, model.config.pooling)
        out: Tensor = model.add_wide_head(model.logits(pooled), self.columns)
        return out

    def select(self, stays: Tensor) -> None:
        """Removes the other rows; `stays`: bool [B]."""
        self.x = self.x[stays]
        self.mask = None if self.mask is None else self.mask[stays]
        self.columns = {
            name: None if tensor is None else tensor[stays] for name, tensor in self.columns.items()
        }

    def run_layer(self) -> None:
        """Runs the next layer."""
        self.x = self.model.run_layers(
            self.x, attention_mask=self.mask, start=self.depth, stop=self.depth + 1
        )
        self.depth += 1
