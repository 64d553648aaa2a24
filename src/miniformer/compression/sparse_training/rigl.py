"""RigL (Evci et al. 2020): small weights make room for those with large gradients.

A random mask at first; then, every N steps, in each matrix
    drop  the smallest of the trained weights, a share that falls as a cosine
    grow  as many of the others with the largest gradients; they start at zero
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from miniformer.compression.sparse_training.matrices import SparseMatrix, largest
from miniformer.config.sparse_training import SparseTrainingConfig


class RigL:
    """Masks of RigL; each matrix always has the same number of trained weights.

    Args:
        config: the settings.
        counts: number of trained weights of each matrix.
        seed: of random masks.
    """

    def __init__(self, config: SparseTrainingConfig, counts: list[int], seed: int) -> None:
        self.config, self.counts = config, counts
        self._generator = torch.Generator().manual_seed(seed)

    def first_mask(self, matrix: SparseMatrix, count: int) -> Tensor:
        """The mask before the first step, bool [O, I]."""
        if self.config.initial == "magnitude":
            return largest(matrix.weight.abs(), count)
        values = torch.rand(matrix.weight.shape, generator=self._generator)
        return largest(values, count).to(matrix.weight.device)

    def is_due(self, step: int, progress: float) -> bool:
        """True if the masks change before a step.

        Args:
            step: completed optimizer steps.
            progress: completed share of the run.
        """
        due = step > 0 and step % self.config.steps_between == 0
        return due and progress < self.config.last_share

    def new_mask(self, matrix: SparseMatrix, count: int, progress: float) -> Tensor:
        """The next mask, by weights and gradients of the current one, bool [O, I].

        Args:
            matrix: with its gradient; without one, the mask stays.
            count: number of its weights, which does not change.
            progress: completed share of the run.
        """
        if (gradient := matrix.gradient) is None:
            return matrix.mask
        exchanged = math.floor(self.config.exchanged_share(progress) * count)
        return drop_and_grow(matrix.weight, gradient, matrix.mask, exchanged)


def drop_and_grow(weight: Tensor, gradient: Tensor, mask: Tensor, count: int) -> Tensor:
    """The mask without its smallest weights, and with as many others of the largest gradients.

    A dropped weight whose gradient is among the largest stays.

    Args:
        weight, gradient: of all weights, [O, I].
        mask: bool [O, I].
        count: number of dropped weights.

    Returns:
        bool [O, I] with as many weights as `mask`.
    """
    retained = largest(weight.abs().masked_fill(~mask, -1.0), int(mask.sum()) - count)
    return retained | largest(gradient.abs().masked_fill(retained, -1.0), count)
