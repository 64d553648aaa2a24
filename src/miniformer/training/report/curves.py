"""The curves of a run: loss, other figures, learning rate, gradients, speed, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from miniformer.training.report.chart_parts import format_number, format_percent, is_drawable
from miniformer.training.report.charts import Point, Series, heat_map, line_chart, moving_average

_SMOOTHING_WINDOWS = 20  # a smoothed curve's means are those of a 20th of the run
_INITIAL_DROP_FRACTION = 0.15  # of a run, in which its loss falls fast
_ZOOM_MAX_RATIO = 0.4  # of a chart's height


def render_curves(
    rows: Sequence[dict[str, float]], gradient_rows: Sequence[dict[str, Any]], loss_unit: str
) -> str:
    """All charts of a run for which there is data, HTML.

    Args:
        rows: see `Report`.
        gradients: see `Report`.
        unit: of the loss.
    """
    steps = [step for row in rows if is_drawable(step := _float_value(row, "step"))]
    x_range = (min(steps), max(steps)) if steps else None

    def chart(title: str, *keys: tuple[str, str], **options: Any) -> str:
        series = [
            Series(
                label,
                metric_points(rows, key),
                css_class=f"s{i + 1}",
                markers=key.startswith("val_"),
            )
            for i, (key, label) in enumerate(keys)
        ]
        return line_chart(title, series, x_range=x_range, **options)

    validated = dict.fromkeys(key for row in rows for key in row if key.startswith("val_"))
    charts = [_loss_chart(rows, loss_unit, x_range)]
    charts += [
        chart(metric_label(key).capitalize(), (key, metric_label(key)), log=None)
        for key in validated
        if key != "val_loss"
    ]
    charts += [
        chart("Learning rate", ("lr", "learning rate"), include_zero=True),
        chart("Gradient norm", ("grad_norm", "gradient norm"), log=None),
        chart("Tokens per second", ("tokens_per_second", "tokens per second"), include_zero=True),
        chart("Use of the machine", ("mfu", "use"), include_zero=True, format_value=format_percent,
              unit="share of its measured peak (MFU)"),
        chart("Memory", ("memory_mb", "memory"), include_zero=True, unit="MB"),
        chart("Waiting and padding", ("waiting", "time waiting for data"),
              ("padding", "places padded"), include_zero=True, format_value=format_percent),
        heat_map("Gradient norms by layer", [
            (_float_value(row, "step"), {k: _float_value(row, k) for k in row if k != "step"})
            for row in gradient_rows
        ]),
    ]  # fmt: skip
    return "".join(charts)


def _loss_chart(rows: Sequence[dict[str, float]], loss_unit: str, x_range: Point | None) -> str:
    """Training and validation loss, and where the latter was lowest."""
    training, validation = metric_points(rows, "train_loss"), metric_points(rows, "val_loss")
    window = len(training) // _SMOOTHING_WINDOWS // 2 * 2 + 1
    series = [Series("training, one batch", training, css_class="s1 faint" if window > 1 else "s1")]
    note = ""
    if window > 1:
        series.append(
            Series("training, smoothed", moving_average(training, window), css_class="s1")
        )
        note = f"Smoothed: mean of {window} neighbouring points."
    series.append(Series("validation", validation, css_class="s2", markers=True))
    mark = None
    if good := [(y, x) for x, y in validation if is_drawable(x) and is_drawable(y)]:
        loss, step = min(good)
        mark = (step, loss, f"best: {format_number(loss)} at step {format_number(step)}")
    lost = sum(not is_drawable(y) for _, y in training + validation)
    if lost:
        note += f" Not drawn, infinite or no numbers: {lost}."
    whole = line_chart("Loss", series, unit=loss_unit, log=None, x_range=x_range, annotation=mark,
                       note=note.strip(), full_width=True)  # fmt: skip
    return whole + _zoomed_loss_chart(series, loss_unit, x_range, mark)


def _zoomed_loss_chart(
    series: Sequence[Series],
    loss_unit: str,
    x_range: Point | None,
    annotation: tuple[float, float, str] | None,
) -> str:
    """The loss without its first fall, where that leaves little room for the rest."""
    if x_range is None:
        return ""
    first = x_range[0] + (x_range[1] - x_range[0]) * _INITIAL_DROP_FRACTION
    later = [
        dataclasses.replace(one, points=[point for point in one.points if point[0] >= first])
        for one in series
    ]
    spans = []
    for some in (series, later):
        values = [y for one in some for _, y in one.points if is_drawable(y)]
        spans.append(max(values, default=0.0) - min(values, default=0.0))
    if not 0 < spans[1] < _ZOOM_MAX_RATIO * spans[0]:
        return ""
    title = f"Loss from step {format_number(math.ceil(first))} on"
    annotation = annotation if annotation is not None and annotation[0] >= first else None
    return line_chart(
        title,
        later,
        unit=loss_unit,
        x_range=(first, x_range[1]),
        annotation=annotation,
        full_width=True,
    )


def metric_points(rows: Iterable[dict[str, float]], key: str) -> list[Point]:
    """(step, value) of the rows that have the value."""
    return [(_float_value(row, "step"), _float_value(row, key)) for row in rows if key in row]


def _float_value(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def metric_label(name: str) -> str:
    """A figure's name in words: `val_macro_f1` -> `validation macro f1`."""
    return name.replace("val_", "validation ").replace("_", " ")
