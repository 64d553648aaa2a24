"""Curves of a run: loss, metrics, learning rate, gradient norms, throughput, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miniformer.training.report.charts import (
    Series,
    draw_lines,
    drawable_values,
    heat_map,
    line_chart,
)
from miniformer.utils.formats import format_number, format_percent, metric_label
from miniformer.utils.plotting import new_axes, save_png

_SMOOTHING_WINDOWS = 20  # the smoothing window is a 20th of the run
_INITIAL_DROP_FRACTION = 0.15  # initial part of a run, in which the loss falls fast
_ZOOM_MAX_RATIO = 0.4  # of the full range of the loss


def render_curves(
    rows: Sequence[dict[str, float]],
    loss_unit: str,
    *,
    metric: str = "loss",
    best_step: float | None = None,
) -> str:
    """Charts of the loss and the validation metrics, HTML.

    Args:
        rows: see `Report.metric_rows`.
        loss_unit: unit of the loss.
        metric: the metric of the best model, whose chart has a mark.
        best_step: step of the best model; None: without a mark, or that of the lowest loss.
    """
    x_range = _x_range(rows)
    val_keys = dict.fromkeys(key for row in rows for key in row if key.startswith("val_"))
    names = sorted((key for key in val_keys if key != "val_loss"), key=f"val_{metric}".__ne__)
    charts = []
    for key in names:
        points = metric_points(rows, key)
        options: dict[str, Any] = {}
        marked = points[points[:, 0] == best_step] if best_step is not None else points[:0]
        if key == f"val_{metric}" and len(marked) and not np.isnan(marked[-1, 1]):
            step, value = marked[-1]
            text = f"best: {format_number(value)} at step {format_number(step)}"
            options["annotation"] = (step, value, text)
        label = metric_label(key)
        series = [Series(label, points, "C0", markers=True)]
        charts.append(line_chart(label.capitalize(), series, x_range=x_range, log=True, **options))
    loss = [*_loss_charts(rows, loss_unit, x_range, marked=metric == "loss")]
    return "".join([*loss, *charts] if metric == "loss" else [*charts[:1], *loss, *charts[1:]])


def render_machine_curves(
    rows: Sequence[dict[str, float]], gradient_rows: Sequence[dict[str, Any]]
) -> str:
    """Charts of the learning rate, gradients, speed and memory, HTML; see `Report`."""
    x_range = _x_range(rows)

    def chart(title: str, *keys: tuple[str, str], **options: Any) -> str:
        series = [
            Series(label, metric_points(rows, key), f"C{i}") for i, (key, label) in enumerate(keys)
        ]
        return line_chart(title, series, x_range=x_range, **options)

    charts = [
        chart("Learning rate", ("lr", "learning rate"), include_zero=True),
        chart("Gradient norm", ("grad_norm", "gradient norm"), log=True),
        chart("Tokens per second", ("tokens_per_second", "tokens per second"), include_zero=True),
        chart("Model FLOPs utilization", ("mfu", "MFU"), include_zero=True,
              format_value=format_percent, unit="of the measured peak"),
        chart("Memory", ("memory_mb", "memory"), include_zero=True, unit="MB"),
        chart("Waiting and padding", ("waiting", "time waiting for data"),
              ("padding", "padded positions"), include_zero=True, format_value=format_percent),
        heat_map("Gradient norms by layer", gradient_rows),
    ]  # fmt: skip
    return "".join(charts)


def _x_range(rows: Sequence[dict[str, float]]) -> tuple[float, float] | None:
    """First and last step; None: there are no steps."""
    steps = drawable_values(row.get("step") for row in rows)
    return None if np.isnan(steps).all() else (np.nanmin(steps), np.nanmax(steps))


def _loss_curves(
    rows: Sequence[dict[str, float]], marked: bool = True
) -> tuple[list[Series], dict[str, Any]]:
    """Training and validation loss, and options of `draw_lines`: the minimum of the latter."""
    training, validation = metric_points(rows, "train_loss"), metric_points(rows, "val_loss")
    window = len(training) // _SMOOTHING_WINDOWS // 2 * 2 + 1
    series, notes = [Series("training, one batch", training, faint=window > 1)], []
    if window > 1:
        series.append(Series("training, smoothed", moving_average(training, window)))
        notes.append(f"Smoothed: mean of {window} neighboring points.")
    series.append(Series("validation", validation, "C1", markers=True))
    num_omitted = int(np.isnan(np.concatenate((training, validation))[:, 1]).sum())
    if num_omitted:
        notes.append(f"NaN or infinite values, not drawn: {num_omitted}.")
    options: dict[str, Any] = {"note": " ".join(notes), "log": True}
    if marked and not np.isnan(validation[:, 1]).all():
        step, loss = validation[np.nanargmin(validation[:, 1])]
        text = f"best: {format_number(loss)} at step {format_number(step)}"
        options["annotation"] = (step, loss, text)
    return series, options


def _loss_charts(
    rows: Sequence[dict[str, float]],
    loss_unit: str,
    x_range: tuple[float, float] | None,
    *,
    marked: bool,
) -> Iterator[str]:
    """The loss, and its part after the initial drop unless the full chart shows it well enough."""
    if x_range is None:
        return
    series, options = _loss_curves(rows, marked)
    options |= {"unit": loss_unit, "full_width": True}
    yield line_chart("Loss", series, x_range=x_range, **options)
    first = x_range[0] + (x_range[1] - x_range[0]) * _INITIAL_DROP_FRACTION
    later = [
        dataclasses.replace(curve, points=curve.points[curve.points[:, 0] >= first])
        for curve in series
    ]
    if 0 < _spread(later) < _ZOOM_MAX_RATIO * _spread(series):
        annotation = options.get("annotation")
        if annotation is not None and annotation[0] < first:
            annotation = None
        title = f"Loss from step {format_number(math.ceil(first))} on"
        options |= {"log": False, "note": "", "annotation": annotation}
        yield line_chart(title, later, x_range=(first, x_range[1]), **options)


def _spread(series: Sequence[Series]) -> float:
    values = np.concatenate([curve.drawn[:, 1] for curve in series])
    return float(np.ptp(values)) if len(values) else 0.0


def plot_loss(
    rows: list[dict[str, float]], path: Path, *, title: str, unit: str, marked: bool = True
) -> None:
    """Plots training and validation loss over steps.

    Args:
        rows: the rows of `metrics.jsonl`.
        path: the PNG file.
        title: the title.
        unit: unit of the loss.
        marked: the lowest validation loss, that of the best model, has a mark.
    """
    series, options = _loss_curves(rows, marked)
    with new_axes(7, 4.2) as axes:
        draw_lines(axes, title, series, unit=f"loss ({unit})", **options)
        save_png(axes, path)


def moving_average(points: np.ndarray, window: int) -> np.ndarray:
    """Centered moving average over `window` points, over fewer near both ends.

    At the start, where losses fall fast, the window is symmetric.

    Args:
        points: x and y, float [N, 2], sorted by x; those with a y of NaN are omitted.
        window: an odd number.
    """
    points = points[~np.isnan(points[:, 1])]
    index = np.arange(len(points))
    half = np.minimum(window // 2, index)
    first, end = index - half, np.minimum(index + half + 1, len(points))
    sums = np.concatenate(([0.0], np.cumsum(points[:, 1])))
    return np.column_stack((points[:, 0], (sums[end] - sums[first]) / (end - first)))


def metric_points(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Step and value of the rows with the metric `key`, float [N, 2], sorted by step."""
    rows = [row for row in rows if key in row]
    points = np.column_stack([drawable_values(row.get(k) for row in rows) for k in ("step", key)])
    points = points[~np.isnan(points[:, 0])]
    ordered: np.ndarray = points[np.argsort(points[:, 0], kind="stable")]
    return ordered
