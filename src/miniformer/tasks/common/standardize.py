"""Standardization of features and targets with the mean and std of the training data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from miniformer.data.reading.records import Records
from miniformer.data.reading.schema import features_to_array

# A smaller std, relative to the mean, is the rounding error of a constant.
_CONSTANT_EPSILON = 1e-12


def mean_std(values: Iterable[Any]) -> tuple[Any, Any]:
    """Mean and standard deviation of numbers or arrays, in one pass (Welford 1962).

    This stays accurate for numbers far from 0.
    """
    count, mean, squares = 0, 0.0, 0.0
    for number in values:
        count += 1
        delta = number - mean
        mean += delta / count
        squares += delta * (number - mean)
    return mean, np.sqrt(squares / count)


def is_constant(mean: float, std: float) -> bool:
    """True if numbers of this mean and standard deviation are equal up to rounding."""
    return not std > _CONSTANT_EPSILON * abs(mean)


def feature_statistics(records: Records) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each feature over all vectors of the records' inputs.

    A constant feature has the standard deviation 1, a valid divisor.

    Args:
        records: each `input` is a list of vectors of width F.

    Returns:
        Two lists of F numbers, in the units of the data.
    """
    # Merges the moments of each input into the running moments (Chan et al. 1979).
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for record in records:
        vectors = features_to_array(record["input"], np.float64)  # [T, F]
        own = vectors.mean(0)
        delta = own - mean
        total = count + len(vectors)
        squares = squares + ((vectors - own) ** 2).sum(0)
        squares = squares + delta**2 * (count * len(vectors) / total)
        mean, count = mean + delta * (len(vectors) / total), total
    stds = np.sqrt(squares / max(1, count))
    stds[stds <= _CONSTANT_EPSILON * np.abs(mean)] = 1.0
    return mean.tolist(), stds.tolist()


def standardize(vectors: np.ndarray, means: list[float], stds: list[float]) -> np.ndarray:
    """Subtracts the means and divides by the standard deviations; float32 [T, F].

    Args:
        vectors: float64 [T, F]; float32 would round away the variation of numbers far from 0.
        means, stds: F numbers each.
    """
    return np.asarray((vectors - np.array(means)) / np.array(stds), dtype=np.float32)
