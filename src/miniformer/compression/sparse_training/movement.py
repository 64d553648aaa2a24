"""Movement pruning (Sanh et al. 2020): weights that move toward zero are removed.

The score of a weight is the sum of -weight * gradient over all steps. Each matrix keeps those with
the largest scores, and their number falls during the run. A removed weight has no gradient and does
not change; the product has a zero in its place. Its score is still updated (straight-through), and
the weight returns when its score is among the largest again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.compression.sparse_training.matrices import SparseMatrix, largest
from miniformer.config.sparse_training import SparseTrainingConfig


class Movement:
    """Masks and scores of movement pruning.

    Args:
        config: the settings.
        counts: number of trained weights of each matrix at the end.

    Attributes:
        scores: float [O, I] by name of the matrix.
        removed: the removed weights by name of the matrix, [O, I]; zero where none is removed.
    """

    def __init__(self, config: SparseTrainingConfig, counts: list[int]) -> None:
        self.config, self.counts = config, counts
        self.scores: dict[str, Tensor] = {}
        self.removed: dict[str, Tensor] = {}

    def add_scores(self, matrix: SparseMatrix) -> None:
        """Adds the movement of a step, before it is taken."""
        name, weight = matrix.name, matrix.weight
        if name not in self.scores:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self.scores[name] = torch.zeros_like(weight, dtype=dtype)
            self.removed[name] = torch.zeros_like(weight)
        if (gradient := matrix.gradient) is not None:
            self.scores[name] -= (weight + self.removed[name]) * gradient

    def num_weights(self, size: int, final_count: int, progress: float) -> int:
        """Number of weights of a matrix that are left.

        Args:
            size: number of its weights.
            final_count: number at the end.
            progress: completed share of the run.
        """
        return size - round(self.config.removed_share(progress) * (size - final_count))

    def is_due(self, step: int, progress: float, is_final: bool) -> bool:
        """True if the masks change after a step.

        Args:
            step: completed optimizer steps.
            progress: completed share of the run.
            is_final: the matrices have their final number of weights.
        """
        if progress >= self.config.last_share and not is_final:
            return True
        return progress > self.config.first_share and step % self.config.steps_between == 0

    def new_mask(self, matrix: SparseMatrix, count: int, progress: float) -> Tensor:
        """The next mask by the scores, bool [O, I]; weights that return have their values again.

        Args:
            matrix: the matrix, which has all weights afterwards, until the mask is set.
            count: number of its weights at the end.
            progress: completed share of the run.
        """
        left = self.num_weights(matrix.weight.numel(), count, progress)
        mask = largest(self.scores[matrix.name], left)
        dense = matrix.weight + self.removed[matrix.name]
        self.removed[matrix.name] = dense.masked_fill(mask, 0.0)
        matrix.weight.copy_(dense)
        return mask
