"""Standardization of features and targets with the mean and std of the training data."""

from __future__ import annotations

import math
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


def statistics_problems(task: Any) -> list[str]:
    """Problems of the options of a task for the statistics of features; see `InputTask`."""
    means, stds = task.feature_means, task.feature_stds
    if means is None and stds is None:
        return []
    if means is None or stds is None:
        return ["feature_means and feature_stds need each other; set both or none"]
    if not task.standardize:
        return ["feature_means and feature_stds have no effect with standardize=false"]
    problems = []
    if len(means) != len(stds) or task.input_dim not in (None, len(means)):
        dim = f", and input_dim is {task.input_dim}" if task.input_dim is not None else ""
        problems.append(
            f"feature_means has {len(means)} numbers and feature_stds {len(stds)}{dim}; each "
            "needs one for each feature"
        )
    if not all(map(math.isfinite, [*means, *stds])) or not all(std > 0 for std in stds):
        problems.append("feature_means must be finite, and feature_stds finite and above 0")
    return problems


def feature_statistics(records: Records, field: str = "input") -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each feature over all vectors of the records' inputs.

    A constant feature has the standard deviation 1, a valid divisor.

    Args:
        records: the data.
        field: field of a record that is a list of vectors of width F.

    Returns:
        Two lists of F numbers, in the units of the data.
    """
    # Merges the moments of each input into the running moments (Chan et al. 1979).
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for record in records:
        vectors = features_to_array(record[field], np.float64)  # [T, F]
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
