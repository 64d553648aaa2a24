"""Plots of predictions against labels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniformer.utils.atomic import atomic_path

_MAX_ANNOTATED_CLASSES = 20  # with more, cells have no numbers


def plot_confusion_matrix(counts: np.ndarray, classes: list[str], path: Path) -> None:
    """Draws a confusion matrix, int [C, C], into a PNG file."""
    side = min(12.0, 3.0 + 0.45 * len(classes))
    figure, axes = _new_figure(side, side)
    fractions = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _MAX_ANNOTATED_CLASSES:
        for row, column in np.ndindex(counts.shape):
            color = "white" if fractions[row, column] > 0.6 else "black"
            number = f"{counts[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
        names = [escape_mathtext(name if len(name) <= 18 else name[:17] + "…") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="predicted", ylabel="class")
    save_figure(figure, path)


def plot_predictions(values: np.ndarray, predictions: np.ndarray, path: Path) -> None:
    """Draws a scatter plot of values and predictions, float [N] each, into a PNG file."""
    figure, axes = _new_figure(5.0, 5.0)
    axes.scatter(values, predictions, s=8, alpha=0.4, linewidths=0)
    both = np.concatenate([values, predictions])
    limits = [float(both.min()), float(both.max())]
    axes.plot(limits, limits, color="0.5", linewidth=1)
    axes.set(xlabel="value", ylabel="predicted")
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG file. Glyphs that the font lacks are drawn as boxes, without a warning."""
    with atomic_path(path) as tmp_path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(tmp_path, format="png")


def escape_mathtext(text: str) -> str:
    """Escapes dollar signs, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")
