"""Precision, recall and F1 of each class, and their averages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from miniformer.tasks.common.record_results import RecordResults
from miniformer.tasks.common.resampling import divide, f1_scores


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Metrics of a class, as in scikit-learn's `classification_report`.

    Args:
        name: class, or `macro avg` or `weighted avg`.
        precision, recall, f1: fractions; 0 if not defined.
        support: items of that class.
        predicted: items predicted as that class.
    """

    name: Any
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


def class_table(results: RecordResults) -> tuple[list[ClassMetrics], list[ClassMetrics]]:
    """Metrics of each class in the order of `classes`, and their macro and weighted averages.

    Of records with one label each, the macro average is that of the classes which the labels or
    the predictions have, as the metric `macro_f1` is. Both lists are empty if the task has no
    classes.
    """
    counts = results.class_counts
    in_average: Any = slice(None)
    if counts is None and results.confusion is not None:
        matrix = results.confusion
        counts = np.stack([np.diag(matrix), matrix.sum(0), matrix.sum(1)], 1)
        in_average = counts.any(1)
    if counts is None or results.classes is None:
        return [], []
    hits, predicted, support = counts.T.astype(np.float64)
    columns = np.stack(
        [divide(hits, predicted, 0.0), divide(hits, support, 0.0), f1_scores(*counts.T)]
    )  # [3, C]
    totals = (int(support.sum()), int(predicted.sum()))
    rows = [
        _class_metrics(name, columns[:, k], int(support[k]), int(predicted[k]))
        for k, name in enumerate(results.classes)
    ]
    weighted = divide(columns @ support, support.sum(), 0.0)
    averages = [
        _class_metrics("macro avg", columns[:, in_average].mean(1), *totals),
        _class_metrics("weighted avg", weighted, *totals),
    ]
    return rows, averages


def _class_metrics(name: Any, values: np.ndarray, support: int, predicted: int) -> ClassMetrics:
    precision, recall, f1 = values.tolist()
    return ClassMetrics(name, precision, recall, f1, support, predicted)
