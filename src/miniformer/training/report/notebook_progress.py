"""Training progress in a Jupyter notebook: a table and a curve that are updated in place."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from miniformer.training.callbacks.progress_line import TrainingStatus
from miniformer.utils.formats import escape_html, format_number, metric_label

_WIDTH, _HEIGHT = 480, 140  # of the curve, in pixels
_MARGIN = 8
_MAX_VALIDATIONS = 8  # rows of the table, the last ones
# Colors of utils/plotting.py.
_COLORS = {"train_loss": "#0072b2", "val_loss": "#d55e00"}


class NotebookProgress:
    """An output cell that shows the state of a run.

    Args:
        display: object with an `update(object, raw=True)` as IPython's DisplayHandle; None: a new
            one in the output of the running cell.
    """

    def __init__(self, display: Any = None) -> None:
        self._display = new_display() if display is None else display

    def update(
        self, status: TrainingStatus, progress: float, rows: Sequence[dict[str, float]]
    ) -> None:
        """Shows a state.

        Args:
            status: state of the run.
            progress: done share of the run, 0 to 1.
            rows: metrics so far, as in `metrics.jsonl`.
        """
        html = render_progress(status, progress, rows)
        text = "  ".join(status.parts().values())
        self._display.update({"text/html": html, "text/plain": text}, raw=True)


def new_display() -> Any:
    """A display handle in the output of the running cell; IPython is imported in a kernel."""
    from IPython.display import DisplayHandle  # type: ignore[import-not-found, unused-ignore]

    handle = DisplayHandle()
    handle.display({"text/plain": "training"}, raw=True)
    return handle


def is_notebook(console: Any) -> bool:
    """True if a console prints into a notebook: rich finds a kernel, and IPython is loaded."""
    return bool(console.is_jupyter and not console.quiet and "IPython" in sys.modules)


def render_progress(
    status: TrainingStatus, progress: float, rows: Sequence[dict[str, float]]
) -> str:
    """HTML of a state: a bar, its numbers, the curve of the losses, and the last validations."""
    parts = "".join(f"<td>{escape_html(text)}</td>" for text in status.parts().values())
    return (
        f'<div><progress value="{progress:.4f}" max="1" style="width:{_WIDTH}px"></progress> '
        f"{progress:.0%}<table><tr>{parts}</tr></table>"
        f"{render_curve(rows)}{_validations(rows)}</div>"
    )


def render_curve(rows: Sequence[dict[str, float]]) -> str:
    """SVG of the training and validation loss by step; empty with less than two points."""
    curves = {
        name: [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        for name in _COLORS
    }
    points = [point for curve in curves.values() for point in curve]
    if len({step for step, _ in points}) < 2:
        return ""
    (left, right), (low, high) = (
        (min(values), max(values)) for values in zip(*points, strict=True)
    )
    height = (high - low) or 1.0

    def to_pixels(step: float, loss: float) -> str:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * (step - left) / (right - left)
        y = _MARGIN + (_HEIGHT - 2 * _MARGIN) * (high - loss) / height
        return f"{x:.1f},{y:.1f}"

    lines, legend = [], []
    for name, curve in curves.items():
        if not curve:
            continue
        color, coordinates = _COLORS[name], " ".join(to_pixels(*point) for point in curve)
        lines.append(
            f'<polyline points="{coordinates}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        )
        lines += [
            f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>'
            for x, y in (point.split(",") for point in coordinates.split() if name == "val_loss")
        ]
        legend.append(f'<span style="color:{color}">{metric_label(name)}</span>')
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f"{''.join(lines)}</svg><br>{' '.join(legend)}: {format_number(low)} to "
        f"{format_number(high)}, steps {left:,.0f} to {right:,.0f}"
    )


def _validations(rows: Sequence[dict[str, float]]) -> str:
    """A table of the last validations."""
    validations = [row for row in rows if "val_loss" in row][-_MAX_VALIDATIONS:]
    if not validations:
        return ""
    names = [name for name in validations[-1] if name.startswith("val_")]
    head = "".join(f"<th>{escape_html(metric_label(name))}</th>" for name in names)
    lines = "".join(
        f"<tr><td>{row['step']:,.0f}</td>"
        + "".join(f"<td>{row[name]:.4f}</td>" if name in row else "<td></td>" for name in names)
        + "</tr>"
        for row in validations
    )
    return f"<table><tr><th>step</th>{head}</tr>{lines}</table>"
