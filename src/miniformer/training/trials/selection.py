"""Comparison of trials on the same held-out records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from miniformer.training.trials.trial import TrialResult

_NUM_RESAMPLES = 200
# Standard errors by which the metric, and for equal metrics the loss, must be better.
METRIC_ERRORS, LOSS_ERRORS = 1.0, 2.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of two trials; positive values: the first one is better.

    Args:
        loss, loss_error: mean of the paired differences of the losses, and its standard error.
        metric, metric_error: difference of the metrics, and its standard error from resamples of
            the records; None: the trials have no metric.
    """

    loss: float
    loss_error: float
    metric: float | None = None
    metric_error: float | None = None

    @property
    def is_better(self) -> bool:
        """True if the first trial is better by more than the noise."""
        loss_is_better = self.loss > LOSS_ERRORS * self.loss_error
        if self.metric is None or self.metric_error is None:
            return loss_is_better
        if abs(self.metric) > METRIC_ERRORS * self.metric_error:
            return self.metric > 0 and self.loss >= -self.loss_error
        return loss_is_better

    def __str__(self) -> str:
        if self.metric is not None and self.metric_error is not None and self.metric > 0:
            return f"better by {self.metric:.3g} ± {self.metric_error:.2g}"
        return f"loss lower by {self.loss:.3g} ± {self.loss_error:.2g}"


def compare(first: TrialResult, second: TrialResult, metric: str) -> Difference:
    """Difference of two trials on the same records.

    Args:
        first, second: the trials.
        metric: name of the checkpoint metric.
    """
    differences = second.losses - first.losses
    n = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    loss = float(differences.mean())
    if first.metric is None or second.metric is None:
        return Difference(loss, error)
    sign = 1 if metric in first.task.maximize else -1
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_NUM_RESAMPLES)
    values = [
        trial.task.resampled_metrics(trial.results, counts).get(metric) for trial in (first, second)
    ]
    if values[0] is None or values[1] is None:
        return Difference(loss, error)
    metric_error = float(np.nanstd(values[0] - values[1], ddof=1))
    return Difference(loss, error, sign * (first.metric - second.metric), metric_error)


def select(results: Sequence[TrialResult], metric: str) -> TrialResult:
    """The best trial; the first one, unless another is better by more than the noise."""
    best = results[0]
    for result in results[1:]:
        if compare(result, best, metric).is_better:
            best = result
    return best


def halve(results: Sequence[TrialResult], metric: str) -> list[TrialResult]:
    """The first trial, and the better half of the others, at least one."""
    others = sorted(results[1:], key=lambda item: _rank(item, metric))
    return [results[0], *others[: max(1, len(others) // 2)]]


def _rank(result: TrialResult, metric: str) -> tuple[float, float]:
    if result.metric is None or np.isnan(result.metric):
        return 0.0, result.loss
    return (-result.metric if metric in result.task.maximize else result.metric), result.loss
