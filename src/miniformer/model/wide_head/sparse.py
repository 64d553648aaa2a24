"""Inputs and outputs of the features of a wide head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Inputs = Mapping[str, Tensor | None]  # tensors of a batch by name; None: not there


class SparseFeatures(NamedTuple):
    """Features that are not 0.

    Args:
        columns: of each feature, int [B, ..., L].
        values: float [B, ..., L]; 0: no feature.
    """

    columns: Tensor
    values: Tensor


def linear_outputs(features: SparseFeatures | Tensor, weight: Tensor) -> Tensor:
    """Product of features [B, ..., K], sparse or dense, with a matrix [K, C]: [B, ..., C]."""
    if isinstance(features, SparseFeatures):
        rows = weight[features.columns]  # [B, ..., L, C]
        return (features.values[..., None] * rows).sum(-2)
    return features.float() @ weight
