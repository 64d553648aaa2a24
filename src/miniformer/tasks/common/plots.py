"""Pictures of what a model gets right and wrong."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniformer.utils.atomic import atomic_path

_MAX_ANNOTATED_CLASSES = 20  # classes up to which each cell has its number


def plot_confusion_matrix(counts: np.ndarray, classes: list[str], path: Path) -> None:
    """Draws a confusion matrix, int [C, C], into a PNG file."""
    side = min(12.0, 3.0 + 0.45 * len(classes))
    figure, axes = _new_figure(side, side)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _MAX_ANNOTATED_CLASSES:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.6 else "black"
            number = f"{counts[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
        names = [escape_mathtext(name if len(name) <= 18 else name[:17] + "…") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="taken for", ylabel="class")
    save_figure(figure, path)


def plot_predictions(values: np.ndarray, predictions: np.ndarray, path: Path) -> None:
    """Draws values and what a model takes them for, float [N] each, into a PNG file."""
    figure, axes = _new_figure(5.0, 5.0)
    axes.scatter(values, predictions, s=8, alpha=0.4, linewidths=0)
    ends = [
        float(min(values.min(), predictions.min())),
        float(max(values.max(), predictions.max())),
    ]
    axes.plot(ends, ends, color="0.5", linewidth=1)
    axes.set(xlabel="value", ylabel="predicted")
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG file. Characters that the font lacks are boxes in it, without a warning."""
    with atomic_path(path) as tmp_path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(tmp_path, format="png")


def escape_mathtext(text: str) -> str:
    """A text for a figure in which dollar signs begin no formula."""
    return text.replace("$", r"\$")
