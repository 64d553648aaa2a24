"""Sections of an HTML report about an evaluation; also for the report of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from miniformer.evaluation.results import EvaluationResults
from miniformer.evaluation.text import format_p_value, format_value
from miniformer.utils.formats import format_number, metric_label
from miniformer.utils.page import Cell, render_table

_MAX_CLASSES = 30  # of a confusion matrix; of more, the most frequent confusions are listed
_MAX_CONFUSIONS = 20
_MAX_CHARS = 600  # of a text in a table


def render_sections(evaluation: EvaluationResults, split: str = "") -> list[tuple[str, str]]:
    """Title and HTML of each section that the evaluation has.

    Args:
        evaluation: the evaluation.
        split: name of the data for titles, such as validation or test; empty: no name.
    """
    suffix = f" ({split} data)" if split else ""
    sections = (
        ("Metrics", metric_table(evaluation)),
        ("Classes", class_section(evaluation)),
        ("Confusion matrix", confusion_section(evaluation)),
        (f"Metrics by {evaluation.by}", group_section(evaluation)),
        ("Comparison", comparison_section(evaluation)),
        ("Calibration", calibration_section(evaluation)),
        (worst_title(evaluation), worst_section(evaluation)),
    )
    return [(f"{title}{suffix}", html) for title, html in sections if html]


def metric_table(evaluation: EvaluationResults) -> str:
    """Metrics with their 95 % intervals."""
    rows = []
    for name, value in evaluation.metrics.items():
        limits = evaluation.intervals.get(name)
        text = "" if limits is None else " to ".join(map(format_number, limits))
        rows.append(
            [
                Cell(metric_label(name), "head"),
                Cell(format_number(value), "number", tooltip=repr(value)),
                Cell(text, "number"),
            ]
        )
    note = ""
    if evaluation.intervals:
        count = evaluation.bootstrap.num_resamples
        note = f"95 % percentile intervals of {count:,} bootstrap resamples of the records"
        note += f"; {evaluation.interval_note}" * bool(evaluation.interval_note)
    header = ["metric", "value", "95 % interval"]
    if not evaluation.intervals:
        header, rows = header[:2], [row[:2] for row in rows]
    return render_table(header, rows, note)


def class_section(evaluation: EvaluationResults) -> str:
    """Precision, recall, F1 and support of each class and their averages."""
    if not evaluation.classes:
        return ""
    rows = [
        [
            Cell(str(row.name), "head"),
            *(
                Cell(f"{value:.3f}", "number shaded", shade=value)
                for value in (row.precision, row.recall, row.f1)
            ),
            row.support,
            row.predicted,
        ]
        for row in [*evaluation.classes, *evaluation.averages]
    ]
    return render_table(["class", "precision", "recall", "F1", "support", "predicted"], rows)


def confusion_section(evaluation: EvaluationResults) -> str:
    """The confusion matrix; of many classes, the most frequent confusions."""
    matrix = evaluation.confusion
    if matrix is None or evaluation.results is None or evaluation.results.classes is None:
        return ""
    classes = [str(name) for name in evaluation.results.classes]
    fractions = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    if len(classes) > _MAX_CLASSES:
        wrong = matrix * (1 - np.eye(len(classes), dtype=np.int64))
        order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_CONFUSIONS]
        cells = [divmod(int(cell), len(classes)) for cell in order]
        rows = [
            [classes[i], classes[j], int(matrix[i, j]), f"{fractions[i, j]:.1%}"]
            for i, j in cells
            if wrong[i, j]
        ]
        note = f"the most frequent confusions of {len(classes)} classes"
        return render_table(["true", "predicted", "records", "of the true class"], rows, note)
    header = ["true \\ predicted", *classes, "all"]
    rows = []
    for i, name in enumerate(classes):
        cells_of_row = [
            Cell(
                int(matrix[i, j]),
                "number shaded",
                shade=float(fractions[i, j]),
                tooltip=f"true {name}, predicted {classes[j]}: {fractions[i, j]:.1%} of {name}",
            )
            for j in range(len(classes))
        ]
        rows.append([Cell(name, "head"), *cells_of_row, int(matrix[i].sum())])
    return render_table(header, rows, "rows: true class; columns: predicted class")


def group_section(evaluation: EvaluationResults) -> str:
    """Metrics by a field of the records."""
    if not evaluation.groups or evaluation.by is None:
        return ""
    names = list(evaluation.groups[0].metrics)
    rows = []
    for group in evaluation.groups:
        cells = []
        for name in names:
            limits = group.intervals.get(name)
            tooltip = "" if limits is None else " to ".join(map(format_number, limits))
            cells.append(Cell(format_number(group.metrics[name]), "number", tooltip=tooltip))
        rows.append(
            [Cell(format_value(group.value) or "(empty)", "head"), group.num_records, *cells]
        )
    left = evaluation.num_omitted_groups
    note = f"and {left:,} more groups" if left else "intervals appear over a value"
    if any(evaluation.wilson_metrics(group) for group in evaluation.groups):
        note += "; Wilson's where all records are right, or none"
    return render_table([evaluation.by, "records", *map(metric_label, names)], rows, note)


def comparison_section(evaluation: EvaluationResults) -> str:
    """Differences from another model, with paired tests."""
    comparison = evaluation.comparison
    if comparison is None:
        return ""
    rows = [
        [
            Cell(metric_label(name), "head"),
            *(Cell(format_number(value), "number") for value in (item.value, item.other_value)),
            Cell(f"{item.difference:+.4g}", "number"),
            Cell(f"{format_number(item.low)} to {format_number(item.high)}", "number"),
            Cell(format_p_value(item.p_value), "number"),
        ]
        for name, item in comparison.differences.items()
    ]
    note = f"paired bootstrap over {comparison.num_records:,} records"
    if comparison.mcnemar_p_value is not None:
        note += (
            f"; McNemar's exact test: only this model right {comparison.only_right:,}, only the "
            f"other {comparison.only_other_right:,}, p {format_p_value(comparison.mcnemar_p_value)}"
        )
    header = ["metric", "this model", comparison.name, "difference", "95 % interval", "p"]
    return render_table(header, rows, note)


def calibration_section(evaluation: EvaluationResults) -> str:
    """Reliability table: confidence and accuracy in bins of equal width."""
    calibration = evaluation.calibration
    if calibration is None:
        return ""
    rows = [
        [
            Cell(f"{item['low']:.2f} to {item['high']:.2f}", "head"),
            int(item["records"]),
            Cell(f"{item['confidence']:.3f}", "number shaded", shade=item["confidence"]),
            Cell(f"{item['accuracy']:.3f}", "number shaded", shade=item["accuracy"]),
        ]
        for item in calibration.bins
    ]
    note = f"expected calibration error {calibration.ece:.4f}"
    if calibration.brier is not None:
        note += f", Brier score {calibration.brier:.4f}"
    return render_table(["confidence", "records", "mean confidence", "accuracy"], rows, note)


def worst_title(evaluation: EvaluationResults) -> str:
    """Title of `worst_section`."""
    has_errors = evaluation.results is not None and evaluation.results.correct is not None
    return "Wrong predictions" if has_errors else "Records with the highest loss"


def worst_section(evaluation: EvaluationResults, count: int = 20) -> str:
    """The worst records: place, truth, prediction, and the record."""
    worst = evaluation.worst(count)
    if not worst:
        return ""
    names = [name for name in ("truth", "prediction", "score") if name in worst[0]]
    rows = []
    for item in worst:
        cells = [Cell(_shorten(_text(item[name])), "number" * (name == "score")) for name in names]
        record = {key: value for key, value in item["record"].items() if key != "continues"}
        rows.append(
            [
                Cell(item["location"].rpartition("/")[2], "head"),
                *cells,
                Cell(f"{item['loss']:.3g}", "number"),
                Cell(_shorten(_record_text(record)), "whole"),
            ]
        )
    note = f"the {len(worst)} with the highest loss"
    return render_table(["record", *names, "loss", "fields"], rows, note)


def _record_text(record: dict[str, Any]) -> str:
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else format_value(value)}"
        for name, value in record.items()
    )


def _text(value: Any) -> str:
    return format_number(value) if isinstance(value, float) else format_value(value)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"
