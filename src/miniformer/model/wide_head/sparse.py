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
