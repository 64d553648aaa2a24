"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_loss(rows: list[dict[str, float]], path: Path, *, title: str, unit: str) -> None:
    """Draws training and validation loss over steps into a PNG file.

    Args:
        rows: the lines of `metrics.jsonl`.
        path: the picture.
        title: its headline.
        unit: of the loss.
    """
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curves: list[tuple[str, str, dict[str, Any]]] = [
        ("train_loss", "training (one batch)", {"color": "0.72", "linewidth": 1.0}),
        ("val_loss", "validation", {"color": "C3", "marker": "o", "markersize": 4}),
    ]
    for key, label, style in curves:
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="optimiser step", ylabel=f"loss ({unit})", title=title)
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(frameon=False)
    beside = path.with_name(path.stem + ".part.png")
    figure.savefig(beside)
    beside.replace(path)
