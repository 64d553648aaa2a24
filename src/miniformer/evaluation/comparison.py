"""Comparison of two models on the same records, by paired tests."""

from __future__ import annotations

import dataclasses

import numpy as np

from miniformer.config import UserError
from miniformer.evaluation.intervals import (
    Bootstrap,
    bootstrap_p_value,
    interval,
    mcnemar_p_value,
)
from miniformer.tasks.base import Task
from miniformer.tasks.common.record_results import RecordResults

# In units of a model's own tokens or standard deviations.
_INCOMPARABLE = frozenset({"loss", "perplexity"})


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of a metric between two models.

    Args:
        value, other_value: metric of the model and of the other one.
        difference: `value` - `other_value`.
        low, high: 95 % bootstrap interval of the difference, over resamples of the same records.
        p_value: two-sided, of the paired bootstrap.
    """

    value: float
    other_value: float
    difference: float
    low: float
    high: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of a model with another one.

    Args:
        name: name of the other model.
        num_records: records that both models have results of.
        differences: by metric.
        only_right, only_other_right: records that only this, or only the other model predicts
            correctly; None: predictions are not right or wrong.
        mcnemar_p_value: two-sided, of McNemar's exact test of these numbers.
    """

    name: str
    num_records: int
    differences: dict[str, Difference]
    only_right: int | None = None
    only_other_right: int | None = None
    mcnemar_p_value: float | None = None


def compare(
    task: Task,
    results: RecordResults,
    other_task: Task,
    other_results: RecordResults,
    bootstrap: Bootstrap,
    name: str,
) -> Comparison:
    """Compares two models by their results on the same data.

    Args:
        task, results: of the model.
        other_task, other_results: of the other model.
        bootstrap: settings of the resamples.
        name: name of the other model.

    Raises:
        UserError: the models are for tasks without common metrics.
    """
    common = np.intersect1d(results.records, other_results.records)
    results, other_results = (
        item.select(np.searchsorted(item.records, common)) for item in (results, other_results)
    )

    def both(counts: np.ndarray) -> dict[str, np.ndarray]:
        first = task.resampled_metrics(results, counts)
        second = other_task.resampled_metrics(other_results, counts)
        pairs = {key: (first[key], second[key]) for key in first if key in second}
        return {key: np.stack(pair, 1) for key, pair in pairs.items()}

    totals = both(np.ones((1, len(common)), np.int64))
    names = [key for key in totals if key not in _INCOMPARABLE] or list(totals)
    if task.name != other_task.name or not names:
        raise UserError(
            f"{name}: a model for {other_task.name} cannot be compared with one for {task.name}"
        )
    resampled = bootstrap.metrics(len(common), both)
    differences = {}
    for key in names:
        value, other_value = totals[key][0].tolist()
        samples = resampled[key][:, 0] - resampled[key][:, 1]
        low, high = interval(samples) or (np.nan, np.nan)
        p_value = bootstrap_p_value(samples)
        differences[key] = Difference(
            value, other_value, value - other_value, float(low), float(high), p_value
        )
    if results.correct is None or other_results.correct is None:
        return Comparison(name, len(common), differences)
    first, second = results.correct, other_results.correct
    return Comparison(
        name,
        len(common),
        differences,
        only_right=int((first & ~second).sum()),
        only_other_right=int((second & ~first).sum()),
        mcnemar_p_value=mcnemar_p_value(first, second),
    )
