"""Evaluation of a model on records: metrics with intervals, groups, comparison, reports."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading.records import Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.evaluation.calibration import calibrate
from miniformer.evaluation.class_table import class_table
from miniformer.evaluation.comparison import compare
from miniformer.evaluation.intervals import Bootstrap, interval, wilson_interval
from miniformer.evaluation.report import write_report
from miniformer.evaluation.results import EvaluationResults, Group
from miniformer.evaluation.run_batches import BatchSettings, run_batches
from miniformer.evaluation.sections import render_sections
from miniformer.evaluation.text import render_text
from miniformer.tasks.base import Task
from miniformer.tasks.common.record_results import RecordResults

MAX_GROUPS = 50  # groups of `by`; further ones are left out


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(EvaluationResults):
    """Evaluation of a model on records; its `repr` is a table. See `EvaluationResults`."""

    def __repr__(self) -> str:
        return render_text(self)

    def _repr_html_(self) -> str:
        return "".join(f"<h3>{title}</h3>{html}" for title, html in render_sections(self))

    def write_report(self, path: str | Path) -> None:
        """Writes an HTML page with all results.

        Args:
            path: the file; its folder is created.

        Raises:
            UserError: the file cannot be written.
        """
        write_report(path, self)


def evaluate(
    model: Any,
    task: Task,
    tokenizer: Tokenizer | None,
    records: Records,
    settings: BatchSettings | None = None,
    *,
    by: str | None = None,
    bootstrap: Bootstrap | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates a model on records.

    Args:
        model, task, tokenizer: the model, its fitted task, and its tokenizer.
        records: labeled records, with the task's schema.
        settings: sizes of the batches; those of training give the same bits as its test.
        by: a field of the records, whose values divide them into groups.
        bootstrap: settings of the intervals; None: 1,000 resamples.
        progress: called with (records done, all records).

    Raises:
        UserError: no record has a label, or none has the field `by`.
        RecordError: a record violates the schema.
    """
    bootstrap = bootstrap or Bootstrap()
    metrics, results = run_batches(
        model, task, tokenizer, records, settings or BatchSettings(), progress=progress
    )
    order = [name for name in task.metrics if name in metrics]
    metrics = {name: metrics[name] for name in dict.fromkeys([*order, *metrics])}
    evaluation = Evaluation(
        task=task,
        data=records.name,
        num_records=len(records),
        metrics=metrics,
        intervals={},
        classes=[],
        averages=[],
        calibration=None,
        results=results,
        records=records,
        bootstrap=bootstrap,
    )
    if results is None:
        if by is not None:
            raise UserError(f"by={by!r}: task={task.name} has no results by record; leave it out")
        return evaluation
    classes, averages = class_table(results)
    groups, omitted = ([], 0) if by is None else _groups(task, results, records, by, bootstrap)
    return dataclasses.replace(
        evaluation,
        intervals=_intervals(task, results, bootstrap),
        classes=classes,
        averages=averages,
        calibration=calibrate(results),
        by=by,
        groups=groups,
        num_omitted_groups=omitted,
    )


def with_comparison(evaluation: Evaluation, baseline: Evaluation, name: str) -> Evaluation:
    """The evaluation with a comparison with that of another model on the same records.

    Raises:
        UserError: the models are for different tasks, or the task has no results by record.
    """
    if evaluation.results is None or baseline.results is None:
        task = evaluation.task.name
        raise UserError(f"{name}: task={task} has no results by record to compare")
    comparison = compare(
        evaluation.task,
        evaluation.results,
        baseline.task,
        baseline.results,
        evaluation.bootstrap,
        name,
    )
    return dataclasses.replace(evaluation, comparison=comparison)


def _intervals(
    task: Task, results: RecordResults, bootstrap: Bootstrap
) -> dict[str, tuple[float, float]]:
    """The interval of each metric; none where all resamples are equal and it is no proportion."""
    if len(results) < 2:  # all resamples of one record are equal
        return {}
    resampled = bootstrap.metrics(
        len(results), lambda counts: task.resampled_metrics(results, counts)
    )
    limits = {}
    for name, values in resampled.items():
        pair = interval(values)
        if pair is not None and pair[0] < pair[1]:
            limits[name] = pair
        elif pair is not None and name in task.proportions:
            limits[name] = wilson_interval(pair[0], len(results))
    return limits


def _groups(
    task: Task, results: RecordResults, records: Records, by: str, bootstrap: Bootstrap
) -> tuple[list[Group], int]:
    """Groups by a field, and the number of those left out."""
    rows = records.read(results.records)
    if not any(by in record for record in rows):
        known = ", ".join(dict.fromkeys(name for record in rows[:100] for name in record))
        raise UserError(f"by={by!r}: no record of {records.name} has this field; they have {known}")
    keys = [_group_key(record.get(by)) for record in rows]
    values = {key: record.get(by) for key, record in zip(keys, rows, strict=True)}
    largest = Counter(keys).most_common()
    groups = []
    for key, count in largest[:MAX_GROUPS]:
        members = results.select(np.flatnonzero([row_key == key for row_key in keys]))
        totals = task.resampled_metrics(members, np.ones((1, count), np.int64))
        metrics = {name: float(totals[name][0]) for name in task.metrics if name in totals}
        groups.append(Group(values[key], count, metrics, _intervals(task, members, bootstrap)))
    return groups, max(0, len(largest) - MAX_GROUPS)


def _group_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
