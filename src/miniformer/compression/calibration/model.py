"""Rounding of a model by calibration records (GPTQ, see `gptq.py`).

The layers are rounded in order, each by the inputs that it gets from the rounded layers before it.
Embeddings, heads and matrices that are no linear layer are rounded as without calibration.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.compression.calibration.data import CalibrationData, input_moments
from miniformer.compression.calibration.gptq import round_matrix
from miniformer.compression.weights import Types, named_matrices, rounded_weight
from miniformer.model.matrices import WeightMatrix, layer_of


def calibrated_model(model: Any, types: Types, data: CalibrationData) -> Any:
    """A float32 copy of a model whose matrices have the values of their integers.

    Args:
        model: the model; it is not changed.
        types: `integers` by name of a matrix.
        data: the calibration records.
    """
    result = copy.deepcopy(model).float()
    matrices = named_matrices(result)
    for name in types:
        if not is_calibrated(matrices[name]):
            _set_weight(matrices[name], rounded_weight(matrices[name].weight, types[name]))
    for members in by_layer(matrices[name] for name in types):
        modules = {name: matrix.module for name, matrix in members.items()}
        moments = input_moments(result, modules, data)
        for name, matrix in members.items():
            options = {key: value for key, value in types[name].items() if key != "type"}
            if name in moments:
                rounded = round_matrix(matrix.weight, moments.pop(name), **options)
            else:  # it has no inputs
                rounded = rounded_weight(matrix.weight, types[name])
            _set_weight(matrix, rounded)
    return result


def by_layer(matrices: Iterable[WeightMatrix]) -> list[dict[str, WeightMatrix]]:
    """The calibrated ones of some matrices by name, those of a layer together, in order."""
    layers: dict[tuple[str, int], dict[str, WeightMatrix]] = {}
    for matrix in matrices:
        layer = layer_of(matrix.name)
        if layer is not None and is_calibrated(matrix):
            layers.setdefault(layer, {})[matrix.name] = matrix
    return [*layers.values()]


def is_calibrated(matrix: WeightMatrix) -> bool:
    """True of linear layers within the layers, whose inputs are known."""
    is_linear = isinstance(matrix.module, nn.Linear) and matrix.parameter is not None
    return is_linear and matrix.index is None and matrix.layer is not None


def _set_weight(matrix: WeightMatrix, weight: Tensor) -> None:
    with torch.no_grad():
        matrix.weight.copy_(weight)
