"""Results of an evaluation by record, and sums of per-example statistics by record.

Letters: N records with a result, in the order of the data; C classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class RecordResults:
    """Results of an evaluation, one row for each record that has a label.

    Args:
        records: index of each row's record in the data, ascending, int64 [N].
        predictions: in the format of `Task.predict` or of the record's label, plain JSON types.
        truths: labels in the same format.
        losses: mean loss of each record, float64 [N].
        weights: weight of each record's loss in the loss of the data, such as its number of
            tokens, float64 [N].
        correct: bool [N]; None: predictions are not right or wrong, as in regression.
        scores: probability of each prediction, float64 [N]; None: not known.
        classes: names of the classes; None: the task has none.
        class_scores: probability of each class, float [N, C].
        confusion: predictions by true class (rows) and predicted class (columns), int64 [C, C];
            None: an item has not exactly one class.
        class_counts: true positives, predicted items and true items of each class, int64 [C, 3];
            None: those of `confusion`.
        statistics: further arrays [N, ...] for `Task.resampled_metrics`, by name.
    """

    records: np.ndarray
    predictions: list[Any]
    truths: list[Any]
    losses: np.ndarray
    weights: np.ndarray
    correct: np.ndarray | None = None
    scores: np.ndarray | None = None
    classes: list[Any] | None = None
    class_scores: np.ndarray | None = None
    confusion: np.ndarray | None = None
    class_counts: np.ndarray | None = None
    statistics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def in_data_order(self) -> Self:
        """The same results with rows sorted by record; each record must have one row."""
        return self._take(np.argsort(self.records, kind="stable"))

    def select(self, rows: np.ndarray) -> Self:
        """The results of some rows, int [K], without the totals over all records."""
        return dataclasses.replace(self._take(rows), confusion=None, class_counts=None)

    def _take(self, rows: np.ndarray) -> Self:
        def take(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: item[rows] for name, item in value.items()}
            if isinstance(value, list):
                return [value[row] for row in rows]
            return None if value is None else value[rows]

        totals = ("classes", "confusion", "class_counts")
        fields = [field.name for field in dataclasses.fields(self) if field.name not in totals]
        return dataclasses.replace(self, **{name: take(getattr(self, name)) for name in fields})


def sum_by_record(records: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums of values by record.

    Args:
        records: record of each value, int64 [M], in any order.
        values: arrays [M].

    Returns:
        The distinct records, ascending, int64 [N], and the float64 [N] sums of each array.
    """
    distinct, rows = np.unique(records, return_inverse=True)
    sums = (np.bincount(rows, np.asarray(array, np.float64), len(distinct)) for array in values)
    return distinct, *sums


def confusion_matrix(truths: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Items by true class (rows) and predicted class (columns), int64 [C, C].

    Args:
        truths, predictions: class indices, int [M].
        num_classes: C.
    """
    cells = truths * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
