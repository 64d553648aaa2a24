"""Zeros in the linear layers within the layers of a model; embeddings, heads and norms stay.

The layers are taken in order. With calibration records, each one has the inputs that it gets from
the pruned layers before it.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from miniformer.compression.calibration.data import CalibrationData, input_moments
from miniformer.compression.calibration.model import by_layer, is_calibrated
from miniformer.compression.pruning.magnitude import magnitude_mask, wanda_mask, zeros_of_share
from miniformer.compression.pruning.request import PATTERN, Sparsity
from miniformer.compression.pruning.sparsegpt import sparse_matrix
from miniformer.config import UserError
from miniformer.model.matrices import WeightMatrix, weight_matrices


@dataclasses.dataclass(frozen=True)
class Zeros:
    """Zeros of a model.

    Args:
        sparsity: the share, or `2:4`.
        method: the method.
        num_zeros: counted weights that are zero.
        num_weights: weights of the matrices.
        num_matrices: the matrices with zeros.
        unchanged: names of the matrices within the layers that stay as they were.
    """

    sparsity: Sparsity
    method: str
    num_zeros: int
    num_weights: int
    num_matrices: int
    unchanged: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"zeros ({self.sparsity}, {self.method}): {self.num_zeros:,} of {self.num_weights:,} "
            f"weights of {self.num_matrices} matrices "
            f"({100 * self.num_zeros / self.num_weights:.2f} %)"
        ]
        if self.unchanged:
            more = f" and {len(self.unchanged) - 3} more" if len(self.unchanged) > 3 else ""
            lines.append(f"as they were: {', '.join(self.unchanged[:3])}{more}")
        lines.append(
            "no faster here: products take as long with zeros, and the file is as large; to be "
            "smaller and faster, use remove or miniformer quantize"
        )
        return "\n".join(lines)


def sparse_model(
    model: Any, sparsity: Sparsity, method: str, data: CalibrationData | None = None
) -> Any:
    """A copy of a model whose linear layers within the layers have zeros.

    Args:
        model: the model; it is not changed.
        sparsity: the share of zeros, or `2:4`.
        method: magnitude, wanda or sparsegpt.
        data: calibration records of wanda and sparsegpt.

    Raises:
        UserError: no matrix fits, or the share is no weight of one or all.
    """
    result = copy.deepcopy(model)
    chosen, unchanged = sparse_matrices(result, sparsity)
    if not chosen:
        problem = (
            "no matrix within the layers has a multiple of 4 inputs, which 2:4 needs; use a share"
            if unchanged
            else "the model has no linear layers within its layers"
        )
        raise UserError(f"sparsity: {problem}")
    for matrix in chosen:
        _check_share(matrix, sparsity, method)
    for members in by_layer(chosen):
        moments: dict[str, Tensor] = {}
        if data is not None and method != "magnitude":
            modules = {name: matrix.module for name, matrix in members.items()}
            moments = input_moments(result, modules, data)
        for name, matrix in members.items():
            with torch.no_grad():
                matrix.weight.copy_(
                    _pruned(matrix.weight, moments.pop(name, None), sparsity, method)
                )
    return result


def sparse_matrices(model: Any, sparsity: Sparsity) -> tuple[list[WeightMatrix], tuple[str, ...]]:
    """The matrices that get zeros, and the names of the others within the layers."""
    chosen, unchanged = [], []
    for matrix in weight_matrices(model):
        if matrix.layer is None:
            continue
        fits = sparsity != PATTERN or matrix.weight.shape[-1] % 4 == 0
        if is_calibrated(matrix) and fits:
            chosen.append(matrix)
        else:
            unchanged.append(matrix.name)
    return chosen, tuple(unchanged)


def count_zeros(model: Any, sparsity: Sparsity, method: str) -> Zeros:
    """Counts the zeros of a model that was pruned."""
    chosen, unchanged = sparse_matrices(model, sparsity)
    return Zeros(
        sparsity,
        method,
        num_zeros=sum(int((matrix.weight == 0).sum()) for matrix in chosen),
        num_weights=sum(matrix.weight.numel() for matrix in chosen),
        num_matrices=len(chosen),
        unchanged=unchanged,
    )


def _check_share(matrix: WeightMatrix, sparsity: Sparsity, method: str) -> None:
    if isinstance(sparsity, str):
        return
    rows, width = matrix.weight.shape
    total, part = (width, "a row of ") if method == "wanda" else (rows * width, "")
    if not 0 < zeros_of_share(sparsity, total) < total:
        amount = "none" if zeros_of_share(sparsity, total) == 0 else "all"
        raise UserError(
            f"sparsity={sparsity:g} of the {total:,} weights of {part}{matrix.name} is {amount} of "
            f"them; {1 / total:.3g} to {(total - 1) / total:.3g} can be zero"
        )


def _pruned(weight: Tensor, moments: Tensor | None, sparsity: Sparsity, method: str) -> Tensor:
    """The weights with zeros; of a matrix without inputs, by magnitude."""
    if moments is None:
        return weight.where(magnitude_mask(weight, sparsity), 0.0)
    if method == "wanda":
        return weight.where(wanda_mask(weight, moments, sparsity), 0.0)
    return sparse_matrix(weight, moments, sparsity)
