"""Balanced sampling: examples of rare classes are drawn more often, in a reproducible order."""

from __future__ import annotations

import numpy as np


def resample_rows(groups: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws as many rows as there are, in proportion to their weights (systematic resampling).

    With weights of mean 1, a row is drawn its weight's floor or ceiling times, and a group the
    floor or ceiling of its total weight. A uniform random number decides, so that the expectation
    is exact (Carpenter et al. 1999).

    Args:
        groups: group of each row, int [n].
        weights: relative weight of each row, float [n], above 0.
        rng: random generator.

    Returns:
        Row indices with repetitions, int64 [n].
    """
    order = rng.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]  # random within a group
    edges = np.cumsum(weights[order])
    edges *= len(order) / edges[-1]
    edges[-1] = len(order)
    counts = np.diff(np.floor(edges + rng.random()), prepend=0).astype(np.int64)
    return np.repeat(order, counts)
