"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniformer.tasks.common.plots import escape_mathtext, save_figure


def plot_loss(rows: list[dict[str, float]], path: Path, *, title: str, unit: str) -> None:
    """Draws training and validation loss over steps into a PNG file.

    Args:
        rows: the lines of `metrics.jsonl`.
        path: the picture.
        title: its headline.
        unit: of the loss.
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
    axes.set(xlabel="optimiser step", ylabel=f"loss ({unit})", title=escape_mathtext(title))
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(frameon=False)
    save_figure(figure, path)


def plot_lr_search(
    lrs: list[float], losses: list[float], suggestion: float, path: Path, *, unit: str
) -> None:
    """Draws the loss over the learning rate into a PNG file, with the suggestion marked.

    Args:
        rates: learning rates, rising.
        losses: the loss at each.
        suggestion: the rate to train with.
        path: the picture.
        unit: of the loss.
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
