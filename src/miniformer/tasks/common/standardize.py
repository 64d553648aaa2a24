"""Standardization: statistics of the training data, taken off numbers before they are learned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from miniformer.data.reading.records import Records
from miniformer.data.reading.schema import features_to_array

# A spread that is smaller, as a share of the mean, is the rounding error of a constant.
_CONSTANT_EPSILON = 1e-12


def mean_std(values: Iterable[Any]) -> tuple[Any, Any]:
    """Mean and standard deviation of numbers or arrays, in one pass (Welford 1962).

    The one-pass form is exact where numbers lie far from 0.
    """
    count, mean, squares = 0, 0.0, 0.0
    for number in values:
        count += 1
        away = number - mean
        mean += away / count
        squares += away * (number - mean)
    return mean, np.sqrt(squares / count)


def is_constant(mean: float, std: float) -> bool:
    """Whether numbers of that mean and standard deviation are all the same, up to rounding."""
    return not std > _CONSTANT_EPSILON * abs(mean)


def feature_statistics(records: Records) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each feature over all vectors of the records' inputs.

    A constant feature has the standard deviation 1, so that it can be divided by it.

    Args:
        records: their `input`s are vectors of one width, F.

    Returns:
        Two lists of F numbers, in the units of the data.
    """
    # Each input's moments are merged into those before it (Chan et al. 1979).
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for record in records:
        vectors = features_to_array(record["input"], np.float64)  # [T, F]
        own = vectors.mean(0)
        away = own - mean
        total = count + len(vectors)
        squares = squares + ((vectors - own) ** 2).sum(0)
        squares = squares + away**2 * (count * len(vectors) / total)
        mean, count = mean + away * (len(vectors) / total), total
    stds = np.sqrt(squares / max(1, count))
    stds[stds <= _CONSTANT_EPSILON * np.abs(mean)] = 1.0
    return mean.tolist(), stds.tolist()


def standardize(vectors: np.ndarray, means: list[float], stds: list[float]) -> np.ndarray:
    """Feature vectors less the means, in units of the standard deviations, float32 [T, F].

    Args:
        vectors: float64 [T, F]; float32 would lose what varies of numbers far from 0.
        means, stds: F numbers each.
    """
    return np.asarray((vectors - np.array(means)) / np.array(stds), dtype=np.float32)
