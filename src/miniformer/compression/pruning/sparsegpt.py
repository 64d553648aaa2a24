"""SparseGPT (Frantar & Alistarh 2023): zeros of a matrix whose errors the other weights correct.

The columns are taken from the first to the last. The error of each weight that becomes zero is
carried over to the columns after it, so that the outputs of the calibration inputs change least:

    H = X^T X + damping        U = upper Cholesky factor of H^-1
    w_j = 0 has the error w_j / U_jj        w_k -= error_j U_jk   for k > j

The weights of least w_j^2 / U_jj^2 become zero: of a share, those of a block of columns, over all
rows, chosen at its first column; of 2:4, two of each four columns, chosen at the first of them.

Letters: O outputs, I inputs, G columns of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.compression.calibration.gptq import inverse_factor
from miniformer.compression.pruning.magnitude import largest, two_of_four, zeros_of_share
from miniformer.compression.pruning.request import Sparsity

BLOCK = 128  # columns


def sparse_matrix(weight: Tensor, hessian: Tensor, sparsity: Sparsity) -> Tensor:
    """A matrix with zeros, whose other weights have changed.

    Args:
        weight: [O, I].
        hessian: X^T X of its inputs X, float64 [I, I].
        sparsity: the share of zeros, or `2:4` with I a multiple of 4.

    Returns:
        The weights, in the type of `weight`, [O, I].
    """
    factor = inverse_factor(hessian)
    remaining = weight.detach().double().clone()
    rows, width = weight.shape
    for first in range(0, width, BLOCK):
        stop = min(first + BLOCK, width)
        block, part = remaining[:, first:stop], factor[first:stop, first:stop]
        count = None
        if not isinstance(sparsity, str):  # the counts of all blocks are those of the matrix
            count = zeros_of_share(sparsity, rows * stop) - zeros_of_share(sparsity, rows * first)
        errors = _prune_block(block, part, count)
        remaining[:, stop:] -= errors @ factor[first:stop, stop:]
    return remaining.to(weight.dtype)


def _prune_block(weight: Tensor, factor: Tensor, count: int | None) -> Tensor:
    """Sets weights of a block of columns to zero, in place.

    Args:
        weight: float64 [O, G].
        factor: its part of the factor, [G, G].
        count: number of zeros; None: 2:4.

    Returns:
        Errors, float64 [O, G].
    """
    diagonal, errors = factor.diagonal(), torch.zeros_like(weight)
    stays = torch.ones_like(weight, dtype=torch.bool)
    if count is not None:
        scores = (weight / diagonal).square()
        stays = largest(scores.reshape(1, -1), count).view_as(weight)
    for column in range(weight.shape[1]):
        if count is None and column % 4 == 0:
            group = slice(column, column + 4)
            stays[:, group] = two_of_four((weight[:, group] / diagonal[group]).square())
        current = weight[:, column].clone()
        weight[:, column] = current.where(stays[:, column], 0.0)
        errors[:, column] = (current - weight[:, column]) / factor[column, column]
        weight[:, column + 1 :] -= errors[:, column, None] * factor[column, column + 1 :]
    return errors
