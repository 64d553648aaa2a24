"""The curves of a run: loss, other figures, learning rate, gradients, speed, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from miniformer.training.report.chart_parts import drawable, percent, told
from miniformer.training.report.charts import Point, Series, heat_map, line_chart, smoothed

_SMOOTH_SHARE = 20  # a smoothed curve's means are those of a 20th of the run
_FALL_SHARE = 0.15  # of a run, in which its loss falls fast
_LITTLE = 0.4  # of a chart's height


def curves(rows: Sequence[dict[str, float]], gradients: Sequence[dict[str, Any]], unit: str) -> str:
    """All charts of a run for which there is data, HTML.

    Args:
        rows: see `Report`.
        gradients: see `Report`.
        unit: of the loss.
    """
    steps = [step for row in rows if drawable(step := _number(row, "step"))]
    x_range = (min(steps), max(steps)) if steps else None

    def chart(title: str, *keys: tuple[str, str], **options: Any) -> str:
        series = [
            Series(label, points_of(rows, key), look=f"s{i + 1}", dots=key.startswith("val_"))
            for i, (key, label) in enumerate(keys)
        ]
        return line_chart(title, series, x_range=x_range, **options)

    validated = dict.fromkeys(key for row in rows for key in row if key.startswith("val_"))
    charts = [_loss(rows, unit, x_range)]
    charts += [
        chart(words_of(key).capitalize(), (key, words_of(key)), log=None)
        for key in validated
        if key != "val_loss"
    ]
    charts += [
        chart("Learning rate", ("lr", "learning rate"), zero=True),
        chart("Gradient norm", ("grad_norm", "gradient norm"), log=None),
        chart("Tokens per second", ("tokens_per_second", "tokens per second"), zero=True),
        chart("Use of the machine", ("mfu", "use"), zero=True, show=percent,
              unit="share of its measured peak (MFU)"),
        chart("Memory", ("memory_mb", "memory"), zero=True, unit="MB"),
        chart("Waiting and padding", ("waiting", "time waiting for data"),
              ("padding", "places padded"), zero=True, show=percent),
        heat_map("Gradient norms by layer", [
            (_number(row, "step"), {k: _number(row, k) for k in row if k != "step"})
            for row in gradients
        ]),
    ]  # fmt: skip
    return "".join(charts)


def _loss(rows: Sequence[dict[str, float]], unit: str, x_range: Point | None) -> str:
    """Training and validation loss, and where the latter was lowest."""
    training, validation = points_of(rows, "train_loss"), points_of(rows, "val_loss")
    window = len(training) // _SMOOTH_SHARE // 2 * 2 + 1
    series = [Series("training, one batch", training, look="s1 faint" if window > 1 else "s1")]
    note = ""
    if window > 1:
        series.append(Series("training, smoothed", smoothed(training, window), look="s1"))
        note = f"Smoothed: mean of {window} neighbouring points."
    series.append(Series("validation", validation, look="s2", dots=True))
    mark = None
    if good := [(y, x) for x, y in validation if drawable(x) and drawable(y)]:
        loss, step = min(good)
        mark = (step, loss, f"best: {told(loss)} at step {told(step)}")
    lost = sum(not drawable(y) for _, y in training + validation)
    if lost:
        note += f" Not drawn, infinite or no numbers: {lost}."
    whole = line_chart("Loss", series, unit=unit, log=None, x_range=x_range, mark=mark,
                       note=note.strip(), wide=True)  # fmt: skip
    return whole + _later_loss(series, unit, x_range, mark)


def _later_loss(
    series: Sequence[Series],
    unit: str,
    x_range: Point | None,
    mark: tuple[float, float, str] | None,
) -> str:
    """The loss without its first fall, where that leaves little room for the rest."""
    if x_range is None:
        return ""
    first = x_range[0] + (x_range[1] - x_range[0]) * _FALL_SHARE
    later = [
        dataclasses.replace(one, points=[point for point in one.points if point[0] >= first])
        for one in series
    ]
    spans = []
    for some in (series, later):
        values = [y for one in some for _, y in one.points if drawable(y)]
        spans.append(max(values, default=0.0) - min(values, default=0.0))
    if not 0 < spans[1] < _LITTLE * spans[0]:
        return ""
    title = f"Loss from step {told(math.ceil(first))} on"
    mark = mark if mark is not None and mark[0] >= first else None
    return line_chart(title, later, unit=unit, x_range=(first, x_range[1]), mark=mark, wide=True)


def points_of(rows: Iterable[dict[str, float]], key: str) -> list[Point]:
    """(step, value) of the rows that have the value."""
    return [(_number(row, "step"), _number(row, key)) for row in rows if key in row]


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def words_of(name: str) -> str:
    """A figure's name in words: `val_macro_f1` -> `validation macro f1`."""
    return name.replace("val_", "validation ").replace("_", " ")
