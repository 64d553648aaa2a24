"""Curves of a run: loss, metrics, learning rate, gradient norms, throughput, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from miniformer.training.report.chart_parts import format_number, format_percent, is_drawable
from miniformer.training.report.charts import Point, Series, heat_map, line_chart, moving_average

_SMOOTHING_WINDOWS = 20  # the smoothing window is a 20th of the run
_INITIAL_DROP_FRACTION = 0.15  # initial part of a run, in which the loss falls fast
_ZOOM_MAX_RATIO = 0.4  # of the full range of the loss


def render_curves(
    rows: Sequence[dict[str, float]], gradient_rows: Sequence[dict[str, Any]], loss_unit: str
) -> str:
    """All charts of a run with data, HTML.

    Args:
        rows: see `Report.metric_rows`.
        gradient_rows: see `Report`.
        loss_unit: unit of the loss.
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

    val_keys = dict.fromkeys(key for row in rows for key in row if key.startswith("val_"))
    charts = [_loss_chart(rows, loss_unit, x_range)]
    charts += [
        chart(metric_label(key).capitalize(), (key, metric_label(key)), log=None)
        for key in val_keys
        if key != "val_loss"
    ]
    charts += [
        chart("Learning rate", ("lr", "learning rate"), include_zero=True),
        chart("Gradient norm", ("grad_norm", "gradient norm"), log=None),
        chart("Tokens per second", ("tokens_per_second", "tokens per second"), include_zero=True),
        chart("Model FLOPs utilization", ("mfu", "MFU"), include_zero=True,
              format_value=format_percent, unit="MFU, fraction of the measured peak"),
        chart("Memory", ("memory_mb", "memory"), include_zero=True, unit="MB"),
        chart("Waiting and padding", ("waiting", "time waiting for data"),
              ("padding", "padded positions"), include_zero=True, format_value=format_percent),
        heat_map("Gradient norms by layer", [
            (_float_value(row, "step"), {k: _float_value(row, k) for k in row if k != "step"})
            for row in gradient_rows
        ]),
    ]  # fmt: skip
    return "".join(charts)


def _loss_chart(rows: Sequence[dict[str, float]], loss_unit: str, x_range: Point | None) -> str:
    """Training and validation loss, with the minimum of the latter annotated."""
    training, validation = metric_points(rows, "train_loss"), metric_points(rows, "val_loss")
    window = len(training) // _SMOOTHING_WINDOWS // 2 * 2 + 1
    series = [Series("training, one batch", training, css_class="s1 faint" if window > 1 else "s1")]
    note = ""
    if window > 1:
        series.append(
            Series("training, smoothed", moving_average(training, window), css_class="s1")
        )
        note = f"Smoothed: mean of {window} neighboring points."
    series.append(Series("validation", validation, css_class="s2", markers=True))
    annotation = None
    if drawable := [(y, x) for x, y in validation if is_drawable(x) and is_drawable(y)]:
        loss, step = min(drawable)
        annotation = (step, loss, f"best: {format_number(loss)} at step {format_number(step)}")
    num_omitted = sum(not is_drawable(y) for _, y in training + validation)
    if num_omitted:
        note += f" NaN or infinite values, not drawn: {num_omitted}."
    chart = line_chart("Loss", series, unit=loss_unit, log=None, x_range=x_range,
                       annotation=annotation, note=note.strip(), full_width=True)  # fmt: skip
    return chart + _zoomed_loss_chart(series, loss_unit, x_range, annotation)


def _zoomed_loss_chart(
    series: Sequence[Series],
    loss_unit: str,
    x_range: Point | None,
    annotation: tuple[float, float, str] | None,
) -> str:
    """The loss after its initial drop; empty if the full chart shows it well enough."""
    if x_range is None:
        return ""
    first = x_range[0] + (x_range[1] - x_range[0]) * _INITIAL_DROP_FRACTION
    later = [
        dataclasses.replace(curve, points=[point for point in curve.points if point[0] >= first])
        for curve in series
    ]
    spans = []
    for curves in (series, later):
        values = [y for curve in curves for _, y in curve.points if is_drawable(y)]
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
    """(step, value) of the rows with the metric `key`."""
    return [(_float_value(row, "step"), _float_value(row, key)) for row in rows if key in row]


def _float_value(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def metric_label(name: str) -> str:
    """Label of a metric: `val_macro_f1` -> `validation macro f1`."""
    return name.replace("val_", "validation ").replace("_", " ")
