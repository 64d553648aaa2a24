"""Plots by matplotlib, which is imported for the first one.

They are not registered with pyplot, and neither its backend nor the style of the process changes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.utils.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colors of curves: after Okabe and Ito (2008), distinct for color-blind readers too.
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,
    "axes.prop_cycle": "cycler('color', ['#0072b2', '#d55e00', '#008a66', '#b0568f'])",
    "axes.edgecolor": "#e1e4e9",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e1e4e9",
    "axes.labelcolor": "#5b6572",
    "legend.labelcolor": "#5b6572",
    "xtick.labelcolor": "#5b6572",
    "ytick.labelcolor": "#5b6572",
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "path.simplify_threshold": 1.0,  # in pixels; long curves keep their extremes
    "svg.fonttype": "none",  # text stays text
}


@contextlib.contextmanager
def new_axes(width: float, height: float, *, salt: str = "") -> Iterator[Axes]:
    """Axes of a new plot; drawing and saving belong into the block, which sets the style.

    Glyphs that the font lacks are drawn as boxes, without a warning.

    Args:
        width: width in inches.
        height: height in inches.
        salt: distinguishes the ids of several SVG plots in one page.
    """
    with _plot_style(salt):
        yield _make_axes(width, height)


@contextlib.contextmanager
def _plot_style(salt: str) -> Iterator[None]:
    from matplotlib import style

    with (
        style.context(["default", {**_STYLE, "svg.hashsalt": ascii(salt)}]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _make_axes(width: float, height: float) -> Axes:
    from matplotlib.figure import Figure

    axes: Axes = Figure((width, height), dpi=72, layout="constrained").add_subplot()
    return axes


def save_png(axes: Axes, path: Path) -> None:
    """Writes the plot of `axes` to a PNG file, atomically."""
    with atomic_path(path) as tmp_path:
        _save(axes, tmp_path, format="png", dpi=120)


def to_svg(axes: Axes) -> str:
    """The plot of `axes` as an SVG document with a transparent background."""
    buffer, no_metadata = io.BytesIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    _save(axes, buffer, format="svg", transparent=True, metadata=no_metadata)
    return buffer.getvalue().decode("utf-8")


def _save(axes: Axes, file: Any, **options: Any) -> None:
    figure: Any = axes.figure
    figure.savefig(file, **options)
