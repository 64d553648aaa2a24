"""SparseMatrix: a matrix of a layer with its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.config import UserError
from miniformer.model.matrices import WeightMatrix, weight_matrices


class SparseMatrix:
    """A trained matrix of a layer, [O, I], some of whose weights are zero.

    Args:
        matrix: the matrix.

    Attributes:
        mask: bool [O, I], True = the weight is trained; it changes by `set_mask`.
    """

    def __init__(self, matrix: WeightMatrix) -> None:
        assert matrix.parameter is not None
        self.name, self.parameter_name = matrix.name, matrix.parameter_name
        self.parameter, self._index = matrix.parameter, matrix.index
        self.mask = torch.ones_like(self.weight, dtype=torch.bool)

    @property
    def weight(self) -> Tensor:
        """The weights, [O, I], without gradients."""
        return self._part(self.parameter.detach())

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of all weights, of zeros too, [O, I]; None: there is none."""
        return None if self.parameter.grad is None else self._part(self.parameter.grad)

    def apply_mask(self) -> None:
        """Sets the weights that are not trained to zero."""
        self.weight.masked_fill_(~self.mask, 0.0)

    def mask_gradient(self) -> None:
        """Sets the gradient of weights that are not trained to zero."""
        if (gradient := self.gradient) is not None:
            gradient.masked_fill_(~self.mask, 0.0)

    def set_mask(
        self, mask: Tensor, optimizer: torch.optim.Optimizer, averages: Mapping[str, Tensor]
    ) -> None:
        """Changes the mask; new weights have no state of the optimizer, and averages no old ones.

        Args:
            mask: bool [O, I].
            optimizer: its state is zero afterwards for all weights but those of both masks.
            averages: averages of weights; names end with that of the parameter.
        """
        stays = self.mask & mask
        for value in optimizer.state.get(self.parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == self.parameter.shape:
                self._part(value).masked_fill_(~stays, 0.0)
        self.mask = mask
        self.apply_mask()
        for name, average in averages.items():
            if name == self.parameter_name or name.endswith(f".{self.parameter_name}"):
                self._part(average).masked_fill_(~mask, 0.0)

    def _part(self, tensor: Tensor) -> Tensor:
        """The part of a tensor of the parameter's shape that is this matrix."""
        return tensor if self._index is None else tensor[self._index]


def sparse_matrices(model: nn.Module) -> list[SparseMatrix]:
    """The trained matrices of the layers of a model.

    Raises:
        UserError: there is none.
    """
    matrices: list[Any] = [
        matrix
        for matrix in weight_matrices(model)
        if matrix.layer is not None
        and matrix.parameter is not None
        and matrix.parameter.requires_grad
    ]
    if not matrices:
        raise UserError("sparse_training: the layers of the model have no trained matrix")
    return [SparseMatrix(matrix) for matrix in matrices]


def largest(values: Tensor, count: int) -> Tensor:
    """A mask of the largest values; of equal ones the first: bool of the shape of `values`."""
    order = values.flatten().sort(descending=True, stable=True).indices[:count]
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[order] = True
    return mask.view_as(values)
