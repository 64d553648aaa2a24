"""Plots of predictions against labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniformer.utils.plotting import new_axes, save_png

_MAX_ANNOTATED_CLASSES = 20  # with more, cells have no numbers


def plot_confusion_matrix(counts: np.ndarray, classes: list[str], path: Path) -> None:
    """Draws a confusion matrix, int [C, C], into a PNG file."""
    side = min(12.0, 3.0 + 0.45 * len(classes))
    fractions = counts / np.maximum(1, counts.sum(1, keepdims=True))
    with new_axes(side, side) as axes:
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        if len(classes) <= _MAX_ANNOTATED_CLASSES:
            for row, column in np.ndindex(counts.shape):
                color = "white" if fractions[row, column] > 0.6 else "black"
                number = f"{counts[row, column]:,}"
                axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
            names = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
            axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
            axes.set_yticks(range(len(classes)), names)
        axes.set(xlabel="predicted", ylabel="class")
        save_png(axes, path)


def plot_predictions(values: np.ndarray, predictions: np.ndarray, path: Path) -> None:
    """Draws a scatter plot of values and predictions, float [N] each, into a PNG file."""
    both = np.concatenate([values, predictions])
    limits = [float(both.min()), float(both.max())]
    with new_axes(5.0, 5.0) as axes:
        axes.scatter(values, predictions, s=8, alpha=0.4, linewidths=0)
        axes.plot(limits, limits, color="0.5", linewidth=1)
        axes.set(xlabel="value", ylabel="predicted")
        save_png(axes, path)
