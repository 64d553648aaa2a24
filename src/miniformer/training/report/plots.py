"""Plots of a run: the loss curve and the learning-rate range test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniformer.tasks.common.plots import escape_mathtext, save_figure


def plot_loss(rows: list[dict[str, float]], path: Path, *, title: str, unit: str) -> None:
    """Plots training and validation loss over steps.

    Args:
        rows: the rows of `metrics.jsonl`.
        path: the PNG file.
        title: the title.
        unit: unit of the loss.
    """
    figure, axes = _new_figure()
    curves: list[tuple[str, str, dict[str, Any]]] = [
        ("train_loss", "training (one batch)", {"color": "0.72", "linewidth": 1.0}),
        ("val_loss", "validation", {"color": "C3", "marker": "o", "markersize": 4}),
    ]
    for key, label, style in curves:
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="optimizer step", ylabel=f"loss ({unit})", title=escape_mathtext(title))
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(frameon=False)
    save_figure(figure, path)


def plot_lr_search(
    lrs: list[float], losses: list[float], suggestion: float, path: Path, *, unit: str
) -> None:
    """Plots the loss over the learning rate and marks the suggestion.

    Args:
        lrs: ascending learning rates.
        losses: the loss at each of them.
        suggestion: the suggested learning rate.
        path: the PNG file.
        unit: unit of the loss.
    """
    figure, axes = _new_figure()
    axes.plot(lrs, losses, color="C0")
    label = f"suggested: {suggestion:.2g}"
    axes.axvline(suggestion, color="C3", linestyle="--", label=label)
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"training loss ({unit}, smoothed)")
    axes.set_title("learning-rate range test")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save_figure(figure, path)


def _new_figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
