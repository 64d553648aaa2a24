"""An evaluation as plain text that fits 80 columns."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from miniformer.evaluation.results import EvaluationResults
from miniformer.utils.formats import clean_text, format_number

WIDTH = 80
_MAX_CLASSES = 30  # further classes are left out
_NAME_WIDTH = 24
_NUM_WORST = 5


def render_text(evaluation: EvaluationResults) -> str:
    """Metrics, classes, groups, comparison and the worst records, in lines of 80 columns."""
    return "\n\n".join(
        "\n".join(lines)
        for lines in (
            _metric_lines(evaluation),
            _class_lines(evaluation),
            _calibration_lines(evaluation),
            _group_lines(evaluation),
            _comparison_lines(evaluation),
            _worst_lines(evaluation),
        )
        if lines
    )


def _metric_lines(evaluation: EvaluationResults) -> list[str]:
    task = evaluation.task.name.replace("_", " ")
    title = f"{task} on {evaluation.data}: {evaluation.num_records:,} records"
    rows = [
        [
            name.replace("_", " "),
            format_number(value),
            *([_format_interval(evaluation.intervals.get(name))] if evaluation.intervals else []),
        ]
        for name, value in evaluation.metrics.items()
    ]
    header = ["metric", "value", "95 % interval"] if evaluation.intervals else ["metric", "value"]
    note = textwrap.wrap(evaluation.interval_note, WIDTH)
    return [_shorten(title, WIDTH), *_table(header, rows), *note]


def _class_lines(evaluation: EvaluationResults) -> list[str]:
    if not evaluation.classes:
        return []
    shown = evaluation.classes[:_MAX_CLASSES]
    rows = [
        [
            str(row.name),
            *(f"{value:.3f}" for value in (row.precision, row.recall, row.f1)),
            f"{row.support:,}",
        ]
        for row in [*shown, *evaluation.averages]
    ]
    lines = _table(["class", "precision", "recall", "F1", "support"], rows)
    left = len(evaluation.classes) - len(shown)
    return [*lines, f"and {left} more classes"] if left else lines


def _calibration_lines(evaluation: EvaluationResults) -> list[str]:
    calibration = evaluation.calibration
    if calibration is None:
        return []
    brier = "" if calibration.brier is None else f", Brier score {calibration.brier:.4f}"
    return [f"calibration: expected calibration error {calibration.ece:.4f}{brier}"]


def _group_lines(evaluation: EvaluationResults) -> list[str]:
    if not evaluation.groups or evaluation.by is None:
        return []
    names = list(evaluation.groups[0].metrics)[:3]
    rows = [
        [
            format_value(group.value) or "(empty)",
            f"{group.num_records:,}",
            *(format_number(group.metrics[name]) for name in names),
            _format_interval(group.intervals.get(names[0])),
        ]
        for group in evaluation.groups
    ]
    labels = [name.replace("_", " ") for name in names]
    lines = _table([evaluation.by, "records", *labels, f"95 % of {labels[0]}"], rows)
    if any(names[0] in evaluation.wilson_metrics(group) for group in evaluation.groups):
        lines.append(f"Wilson's interval where {labels[0]} is 0 or 1")
    left = evaluation.num_omitted_groups
    return [*lines, f"and {left:,} more groups"] if left else lines


def _comparison_lines(evaluation: EvaluationResults) -> list[str]:
    comparison = evaluation.comparison
    if comparison is None:
        return []
    rows = [
        [
            name.replace("_", " "),
            format_number(item.value),
            format_number(item.other_value),
            f"{item.difference:+.4g}",
            _format_interval((item.low, item.high)),
            format_p_value(item.p_value),
        ]
        for name, item in comparison.differences.items()
    ]
    header = ["metric", "this", "other", "difference", "95 % interval", "p"]
    lines = [
        _shorten(f"against {comparison.name} (paired bootstrap)", WIDTH),
        *_table(header, rows),
    ]
    if comparison.mcnemar_p_value is not None:
        lines.append(
            f"McNemar's exact test: right only in this model {comparison.only_right:,}, in the "
            f"other {comparison.only_other_right:,}; p {format_p_value(comparison.mcnemar_p_value)}"
        )
    return lines


def _worst_lines(evaluation: EvaluationResults) -> list[str]:
    worst = evaluation.worst(_NUM_WORST)
    if not worst:
        return []
    lines = ["worst records" if "correct" not in worst[0] else "wrong, with the highest loss"]
    for item in worst:
        facts = [
            f"{name} {format_value(item[name])}" for name in ("truth", "prediction") if name in item
        ]
        score = f", score {item['score']:.2f}" if "score" in item else ""
        facts = [*facts, f"loss {item['loss']:.3g}"]
        lines.append(
            _shorten(f"  {item['location'].rpartition('/')[2]}: {', '.join(facts)}{score}", WIDTH)
        )
        lines.append(_shorten(f"    {describe_record(item['record'])}", WIDTH))
    return lines


def describe_record(record: dict[str, Any]) -> str:
    """The input of a record in one line: its first text, or its JSON."""
    for name in ("input", "source", "text", "tokens"):
        if name in record:
            return format_value(record[name])
    return format_value(record)


def format_value(value: Any) -> str:
    """A value of a record in one line."""
    text = value if isinstance(value, str) else _format_plain(value)
    return clean_text(" ".join(text.split()))


def format_p_value(value: float) -> str:
    """A p-value with two digits."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _format_plain(value: Any) -> str:
    if isinstance(value, float):
        return format_number(value)
    return json.dumps(_round(value), ensure_ascii=False, default=str)


def _round(value: Any) -> Any:
    """The value with numbers of 6 significant digits."""
    if isinstance(value, list):
        return [_round(item) for item in value]
    if isinstance(value, dict):
        return {name: _round(item) for name, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _format_interval(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"{format_number(limits[0])} to {format_number(limits[1])}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column on the left, the others on the right."""
    table = [[_shorten(cell, _NAME_WIDTH) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
