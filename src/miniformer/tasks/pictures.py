"""Pictures of what a model gets right and wrong."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniformer.utils.atomic import atomic_path

_MOST_NUMBERS = 20  # classes up to which each cell has its number


def draw_confusion(counts: np.ndarray, classes: list[str], path: Path) -> None:
    """Draws a confusion matrix, int [C, C], into a PNG file."""
    side = min(12.0, 3.0 + 0.45 * len(classes))
    figure, axes = _figure(side, side)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _MOST_NUMBERS:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.6 else "black"
            number = f"{counts[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
        names = [plain(name if len(name) <= 18 else name[:17] + "…") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="taken for", ylabel="class")
    save_picture(figure, path)


def draw_guesses(values: np.ndarray, guesses: np.ndarray, path: Path) -> None:
    """Draws values and what a model takes them for, float [N] each, into a PNG file."""
    figure, axes = _figure(5.0, 5.0)
    axes.scatter(values, guesses, s=8, alpha=0.4, linewidths=0)
    ends = [float(min(values.min(), guesses.min())), float(max(values.max(), guesses.max()))]
    axes.plot(ends, ends, color="0.5", linewidth=1)
    axes.set(xlabel="value", ylabel="predicted")
    axes.grid(alpha=0.25)
    save_picture(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_picture(figure: Figure, path: Path) -> None:
    """Writes a PNG file. Characters that the font lacks are boxes in it, without a warning."""
    with atomic_path(path) as tmp_path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(tmp_path, format="png")


def plain(text: str) -> str:
    """A text for a figure in which dollar signs begin no formula."""
    return text.replace("$", r"\$")
