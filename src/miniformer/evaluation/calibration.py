"""Calibration: agreement of probabilities with the share of right predictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from miniformer.tasks.common.record_results import RecordResults

NUM_BINS = 15  # as Guo et al. 2017


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of a classifier.

    Args:
        ece: expected calibration error (Guo et al. 2017): mean distance of confidence and accuracy
            over bins of equal width, weighted by their records.
        brier: Brier score: mean squared distance of the probabilities from the truth, summed over
            classes, 0 to 2; None: the probabilities of all classes are not known.
        bins: of each bin that has records: `low` and `high` confidence, number of `records`, mean
            `confidence`, and `accuracy`.
    """

    ece: float
    brier: float | None
    bins: list[dict[str, float]]


def calibrate(results: RecordResults) -> Calibration | None:
    """Calibration of results; None: they have no probabilities, or are not right or wrong."""
    if results.scores is None or results.correct is None or not len(results):
        return None
    scores, correct = results.scores, results.correct.astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    rows = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, NUM_BINS - 1)
    sizes = np.bincount(rows, minlength=NUM_BINS)
    confidence, accuracy = (
        np.bincount(rows, values, NUM_BINS) / np.maximum(sizes, 1) for values in (scores, correct)
    )
    ece = float((sizes * np.abs(confidence - accuracy)).sum() / len(scores))
    bins = [
        {
            "low": float(edges[k]),
            "high": float(edges[k + 1]),
            "records": int(sizes[k]),
            "confidence": float(confidence[k]),
            "accuracy": float(accuracy[k]),
        }
        for k in np.flatnonzero(sizes)
    ]
    return Calibration(ece, _brier(results), bins)


def _brier(results: RecordResults) -> float | None:
    if results.class_scores is None or results.classes is None:
        return None
    columns = {name: column for column, name in enumerate(results.classes)}
    truths = np.zeros(results.class_scores.shape)
    for row, truth in enumerate(results.truths):
        truths[row, [columns[name] for name in _as_list(truth)]] = 1.0
    return float(((results.class_scores - truths) ** 2).sum(1).mean())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
