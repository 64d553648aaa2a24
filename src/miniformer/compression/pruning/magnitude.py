"""Weights that become zero by scores of their own: magnitude, and Wanda (Sun et al. 2024).

| method | score of a weight | of a share, the least scores are those of |
|---|---|---|
| magnitude | absolute value | the matrix |
| wanda | absolute value x norm of its input over the calibration tokens | each row |

Of 2:4, they are those of each four consecutive inputs of a row. Of equal scores the first is zero.

Letters: O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.compression.pruning.request import Sparsity


def magnitude_mask(weight: Tensor, sparsity: Sparsity) -> Tensor:
    """Mask of the weights that stay, bool [O, I].

    Args:
        weight: [O, I].
        sparsity: the share of zeros, or `2:4` with I a multiple of 4.
    """
    scores = weight.detach().abs()
    if isinstance(sparsity, str):
        return two_of_four(scores)
    row = scores.reshape(1, -1)
    return largest(row, zeros_of_share(sparsity, row.shape[1])).view_as(weight)


def wanda_mask(weight: Tensor, moments: Tensor, sparsity: Sparsity) -> Tensor:
    """Mask of the weights that stay, bool [O, I].

    Args:
        weight: [O, I].
        moments: X^T X of its inputs X, float64 [I, I].
        sparsity: see `magnitude_mask`.
    """
    scores = weight.detach().abs().double() * moments.diagonal().sqrt()
    if isinstance(sparsity, str):
        return two_of_four(scores)
    return largest(scores, zeros_of_share(sparsity, scores.shape[1]))


def two_of_four(scores: Tensor) -> Tensor:
    """Mask of the two largest of each four consecutive scores of a row, bool [O, I]."""
    return largest(scores.reshape(-1, 4), 2).view_as(scores)


def largest(scores: Tensor, num_zeros: int) -> Tensor:
    """Mask of all but the `num_zeros` least scores of each row, bool [O, I]."""
    order = scores.argsort(dim=1, stable=True)
    return torch.ones_like(scores, dtype=torch.bool).scatter(1, order[:, :num_zeros], False)


def zeros_of_share(share: float, total: int) -> int:
    """Number of zeros that a share of so many weights is, rounded to the nearest."""
    return int(share * total + 0.5)
