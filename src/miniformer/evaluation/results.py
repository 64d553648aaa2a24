"""Results of an evaluation: metrics with intervals, and results by record."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from miniformer.data.reading.records import Records
from miniformer.evaluation.calibration import Calibration
from miniformer.evaluation.class_table import ClassMetrics
from miniformer.evaluation.comparison import Comparison
from miniformer.evaluation.intervals import Bootstrap
from miniformer.tasks.base import Task
from miniformer.tasks.common.record_results import RecordResults


@dataclasses.dataclass(frozen=True)
class Group:
    """Metrics of the records with one value of a field.

    Args:
        value: the value; None: records without the field.
        num_records: records of the group that have a label.
        metrics: by name; NaN: not defined for these records.
        intervals: 95 % interval of each metric.
    """

    value: Any
    num_records: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class EvaluationResults:
    """Results of an evaluation of a model on records.

    Args:
        task: the task of the model.
        data: name of the data.
        num_records: number of records.
        metrics: metrics of the task, the most informative first; the same numbers as of a test in
            training.
        intervals: 95 % interval of each metric, where the task has results by record: of the
            bootstrap, or Wilson's, see `miniformer.evaluation.intervals`.
        classes: precision, recall, F1 and support of each class; empty: the task has none.
        averages: their macro and weighted averages.
        calibration: agreement of probabilities and accuracy; None: the task has none.
        by: field that `groups` are by.
        groups: metrics of the records with each value of `by`, the largest group first.
        num_omitted_groups: further groups, which are left out.
        comparison: comparison with another model; None: there is none.
        results: results by record; None: the task has none.
        records: the data.
        bootstrap: settings of the intervals.
    """

    task: Task
    data: str
    num_records: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    classes: list[ClassMetrics]
    averages: list[ClassMetrics]
    calibration: Calibration | None
    results: RecordResults | None
    records: Records
    bootstrap: Bootstrap
    by: str | None = None
    groups: list[Group] = dataclasses.field(default_factory=list)
    num_omitted_groups: int = 0
    comparison: Comparison | None = None

    @property
    def interval_note(self) -> str:
        """Names of the metrics whose interval is not that of the bootstrap; empty: there is none.

        They are those of which all resamples are equal.
        """
        resampled = bool(self.intervals) and self.results is not None
        wilson = self.wilson_metrics(self)
        none = [
            name
            for name, value in self.metrics.items()
            if resampled and name not in self.intervals and math.isfinite(value)
        ]
        parts = [
            f"{', '.join(name.replace('_', ' ') for name in names)} ({text})"
            for text, names in (("Wilson's interval", wilson), ("no interval", none))
            if names
        ]
        return f"all resamples are equal: {', '.join(parts)}" if parts else ""

    def wilson_metrics(self, part: EvaluationResults | Group) -> list[str]:
        """Metrics with Wilson's interval: shares of right records that are 0 or 1.

        Args:
            part: the whole evaluation, or a group.
        """
        names = (name for name in self.task.proportions if name in part.intervals)
        return [name for name in names if part.metrics[name] in (0.0, 1.0)]

    @property
    def confusion(self) -> np.ndarray | None:
        """Records by true class (rows) and predicted class (columns), int64 [C, C]."""
        return None if self.results is None else self.results.confusion

    def worst(self, count: int = 20) -> list[dict[str, Any]]:
        """The worst records: wrong ones with the highest loss, or of all those with the highest.

        Args:
            count: maximum number of records.

        Returns:
            Of each its `location` (file:line, or record and index), `record`, and the results of
            `predictions`.
        """
        if self.results is None:
            return []
        results = self.results
        rows = np.arange(len(results))
        if results.correct is not None:
            rows = rows[~results.correct]
        order = np.argsort(-results.losses[rows], kind="stable")[:count]
        rows = rows[order]
        return [
            {
                "location": self.records.location(int(results.records[row])),
                **_row(results, row),
                "record": self.records[int(results.records[row])],
            }
            for row in rows.tolist()
        ]

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Results of each record that has a label, in the order of the data.

        Yields:
            `index` of the record, `prediction`, `truth`, `correct`, `score` (the probability of the
            prediction) and `loss`, those that the task has.
        """
        if self.results is not None:
            for row in range(len(self.results)):
                yield {"index": int(self.results.records[row]), **_row(self.results, row)}

    def to_dict(self) -> dict[str, Any]:
        """All results except those by record, in plain types; NaN is None."""
        result: dict[str, Any] = {
            "task": self.task.name,
            "data": self.data,
            "records": self.num_records,
            "metrics": self._with_intervals(self),
            "interval": {"level": 0.95, **dataclasses.asdict(self.bootstrap)},
        }
        if self.classes:
            table = [*self.classes, *self.averages]
            result["classes"] = [dataclasses.asdict(row) for row in table]
        if self.confusion is not None and self.results is not None:
            counts = self.confusion.tolist()
            result["confusion"] = {"classes": self.results.classes, "true_by_predicted": counts}
        if self.calibration is not None:
            result["calibration"] = dataclasses.asdict(self.calibration)
        if self.by is not None:
            result["by"] = self.by
            result["groups"] = [
                {
                    "value": group.value,
                    "records": group.num_records,
                    "metrics": self._with_intervals(group),
                }
                for group in self.groups
            ]
        if self.comparison is not None:
            result["against"] = dataclasses.asdict(self.comparison)
        result["worst"] = self.worst()
        plain: dict[str, Any] = _plain(result)
        return plain

    def _with_intervals(self, part: EvaluationResults | Group) -> dict[str, dict[str, Any]]:
        result: dict[str, dict[str, Any]] = {name: {"value": x} for name, x in part.metrics.items()}
        for name, (low, high) in part.intervals.items():
            result[name] |= {"low": low, "high": high}
        for name in self.wilson_metrics(part):
            result[name]["method"] = "wilson"
        return result

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2, default=str)


def _row(results: RecordResults, row: int) -> dict[str, Any]:
    values: dict[str, Any] = {"prediction": results.predictions[row], "truth": results.truths[row]}
    values = {name: value for name, value in values.items() if value is not None}
    if results.correct is not None:
        values["correct"] = bool(results.correct[row])
    if results.scores is not None:
        values["score"] = float(results.scores[row])
    return {**values, "loss": float(results.losses[row])}


def _plain(value: Any) -> Any:
    """The value with None in place of numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
