"""Metrics of predicted numbers, of one output or averaged over several, for many resamples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from miniformer.tasks.common.resampling import divide, pearson, spearman, weighted_mean

METRICS = ("rmse", "mae", "pearson", "spearman", "r2")
_MAX_REPORTED_OUTPUTS = 20  # with more, only averages are reported


def value_metrics(
    counts: np.ndarray, errors: np.ndarray, predictions: np.ndarray, values: np.ndarray
) -> dict[str, np.ndarray]:
    """MAE, RMSE, Pearson's and Spearman's correlation and R2 of one output; float64 [R] each.

    R2 is 1 - squared error / variance of the values; correlations and R2 with constant values are
    not defined and 0.

    Args:
        counts: times that each resample contains each record, int [R, N].
        errors: predictions - values, before rounding by a large offset, [N].
        predictions, values: [N].
    """
    ones = np.ones(len(values))
    squared = weighted_mean(counts, errors**2, ones)
    return {
        "mae": weighted_mean(counts, np.abs(errors), ones),
        "rmse": np.sqrt(squared),
        "pearson": pearson(counts, predictions, values),
        "spearman": spearman(counts, predictions, values),
        "r2": r2(counts, squared, values),
    }


def r2(counts: np.ndarray, squared_error: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficient of determination; 0 with constant values; float64 [R].

    Args:
        counts: int [R, N].
        squared_error: mean squared error in each resample, [R].
        values: [N].
    """
    ones = np.ones(len(values))
    centered = values - weighted_mean(counts, values, ones)[:, None]  # [R, N]
    total = np.maximum(counts.sum(-1), 1)
    variance = (counts * centered**2).sum(-1) / total
    varies = variance > np.abs(values).max(initial=0.0) ** 2 * 1e-24
    return np.where(varies, 1 - divide(squared_error, variance, 0.0), 0.0)


def average_outputs(
    names: Sequence[Any], metrics_of: Callable[[int], dict[str, Any]]
) -> dict[str, Any]:
    """Metrics averaged over outputs, and those of each output, such as `rmse_price`.

    Args:
        names: names of the outputs.
        metrics_of: metrics of an output, by its index.
    """
    columns = [metrics_of(index) for index in range(len(names))]
    averages = {name: sum(column[name] for column in columns) / len(names) for name in columns[0]}
    if len(names) > _MAX_REPORTED_OUTPUTS:
        return averages
    single = {
        f"{metric}_{name}": value
        for name, column in zip(names, columns, strict=True)
        for metric, value in column.items()
    }
    return {**averages, **single}
