"""Plots by matplotlib, which is imported for the first one.

They are not registered with pyplot, and neither its backend nor the style of the process changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.utils.atomic import atomic_path, write_text

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
    axes: Axes = _make_figure(width, height).add_subplot()
    return axes


def _make_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=72, layout="constrained")


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot that shows itself in a notebook and is saved to a file.

    Args:
        draw: draws into a `Figure` of matplotlib.
        width: width in inches.
        height: height in inches.
        salt: distinguishes the ids of several SVG plots in one page.
    """

    draw: Callable[[Any], None]
    width: float
    height: float
    salt: str = ""

    def to_svg(self) -> str:
        """The plot as an SVG document with a transparent background."""
        with _plot_style(self.salt):
            figure = _make_figure(self.width, self.height)
            self.draw(figure)
            return to_svg(figure)

    def save(self, path: str | Path) -> None:
        """Writes the plot to a file: .svg, or else PNG; atomically."""
        if Path(path).suffix == ".svg":
            write_text(Path(path), self.to_svg())
            return
        with _plot_style(self.salt), atomic_path(Path(path)) as tmp_path:
            figure = _make_figure(self.width, self.height)
            self.draw(figure)
            _save(figure, tmp_path, format="png", dpi=120)

    def _repr_svg_(self) -> str:
        return self.to_svg()


def save_png(axes: Axes, path: Path) -> None:
    """Writes the plot of `axes` to a PNG file, atomically."""
    with atomic_path(path) as tmp_path:
        _save(axes, tmp_path, format="png", dpi=120)


def to_svg(axes: Any) -> str:
    """The plot of axes or of a `Figure` as an SVG document with a transparent background."""
    buffer, no_metadata = io.BytesIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    _save(axes, buffer, format="svg", transparent=True, metadata=no_metadata)
    return buffer.getvalue().decode("utf-8")


def _save(axes: Any, file: Any, **options: Any) -> None:
    axes.figure.savefig(file, **options)
