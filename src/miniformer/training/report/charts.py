"""Charts of the report: matplotlib plots as inline SVG with tooltips, without scripts."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from miniformer.utils.formats import (
    clean_text,
    escape_html,
    format_number,
    format_steps,
)
from miniformer.utils.plotting import new_axes, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_MARKERS = 60  # longer series have no markers
_MAX_TOOLTIPS = 60  # bands of a chart with a tooltip
_MAX_HEATMAP_COLUMNS = 60  # longer series share columns
_MAX_ABS_VALUE = 1e100  # larger values are not drawn
_MAX_LABEL_CHARS = 80  # longer titles and labels leave no space for the plot
_LOG_SCALE_MIN_RATIO = 30.0  # max / min from which a scale is logarithmic

Tooltip = tuple[float, float, list[str]]  # the left and right end, in units of x, and the lines


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        label: the label in the legend.
        points: x (an integer) and y, float [N, 2], sorted by x; a y that is NaN leaves a gap.
        color: matplotlib's name of the color, C0 to C3.
        faint: a thin, light line.
        markers: draw a marker at each point, unless there are too many.
    """

    label: str
    points: np.ndarray
    color: str = "C0"
    faint: bool = False
    markers: bool = False

    @property
    def drawn(self) -> np.ndarray:
        """The points whose y is not NaN."""
        drawn: np.ndarray = self.points[~np.isnan(self.points[:, 1])]
        return drawn


def drawable_values(values: Iterable[Any]) -> np.ndarray:
    """The values as floats: NaN if they are no numbers or too large to draw, 0 if too small."""
    numbers = [value if isinstance(value, (int, float)) else np.nan for value in values]
    floats = np.array(numbers, dtype=float)
    floats[~(np.abs(floats) < _MAX_ABS_VALUE)] = np.nan
    floats[np.abs(floats) <= 1 / _MAX_ABS_VALUE] = 0.0
    return floats


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    format_value: Callable[[float], str] = format_number,
    full_width: bool = False,
    **options: Any,
) -> str:
    """A line chart, HTML; empty without values.

    Args:
        title: the title.
        series: the curves, the last one on top.
        format_value: formats values of y.
        full_width: as wide as the page.
        options: further options of `draw_lines`.
    """
    series = [curve for curve in series if len(curve.drawn)]
    if not series:
        return ""
    last_values = (
        f"{curve.label}: {format_value(curve.drawn[-1, 1])} at the end" for curve in series
    )
    with new_axes(*((12.1, 4.2) if full_width else (5.8, 2.9)), salt=title) as axes:
        draw_lines(axes, title, series, format_value=format_value, **options)
        return _chart_html(
            axes,
            f"{title}, a line chart. {'; '.join(last_values)}.",
            _line_tooltips(series, axes.get_xlim(), format_value),
            full_width=full_width,
        )


def draw_lines(
    axes: Axes,
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    log: bool = False,
    include_zero: bool = False,
    format_value: Callable[[float], str] = format_number,
    x_range: tuple[float, float] | None = None,
    annotation: tuple[float, float, str] | None = None,
    note: str = "",
) -> None:
    """Draws curves with title, axes and legend.

    Args:
        axes: the axes of a new plot.
        title: the title.
        series: the curves, the last one on top.
        unit: unit of y.
        log: logarithmic y axis if all values are positive and their range is wide.
        include_zero: start the y axis at 0, unless there are negative values.
        format_value: formats values of y.
        x_range: ends of the x axis; None: from the points.
        annotation: x, y and text of an annotated point.
        note: a line below the chart.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    series = [curve for curve in series if len(curve.drawn)]
    values = np.concatenate([[], *(curve.drawn[:, 1] for curve in series)])
    axes.set_title(_plot_label(title), loc="left", fontsize=11, pad=24 if len(series) > 1 else None)
    axes.set_xlabel("optimizer step" + f"\n{note}" * bool(note))
    axes.grid(visible=False, axis="x")
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if log and len(values) and values.max() >= _LOG_SCALE_MIN_RATIO * values.min() > 0:
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        unit = ", ".join(filter(None, (unit, "logarithmic")))
    axes.set_ylabel(_plot_label(unit))
    axes.xaxis.set_major_formatter(lambda x, _: format_number(x))
    axes.yaxis.set_major_formatter(lambda y, _: format_value(y))
    for curve in series:
        marked = ~np.isnan(curve.points[:, 1])
        if not curve.markers or marked.sum() > _MAX_MARKERS:  # only points without neighbors
            padded = np.concatenate(([False], marked, [False]))
            marked &= ~(padded[:-2] | padded[2:])
        axes.plot(
            *curve.points.T,
            color=curve.color,
            label=curve.label,
            alpha=0.4 if curve.faint else 1.0,
            linewidth=0.8 if curve.faint else 1.6,
            marker="o" if marked.any() else "",
            markersize=4,
            markevery=np.flatnonzero(marked),
            clip_on=False,  # markers at the ends are complete
            gid="curve",
        )
    if include_zero and (values >= 0).all():
        axes.set_ylim(bottom=0)
    if x_range is not None and x_range[1] - x_range[0] > 1e-9 * max(map(abs, x_range)):
        axes.set_xlim(*x_range)
    if annotation is not None:
        x, y, text = annotation
        is_right = x > sum(axes.get_xlim()) / 2
        axes.axvline(x, color="#5b6572", linewidth=0.8, linestyle=":")
        axes.plot(x, y, "o", color="C1", markersize=9, fillstyle="none", gid="best")
        axes.annotate(
            text,
            (x, 1),
            (-5 if is_right else 5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="top",
        )
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=len(series))


def heat_map(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A heat map of positive values by name and step, with logarithmic colors, HTML.

    The result is empty without drawable values.

    Args:
        title: the title.
        rows: `step` and values by name; values that are not positive stay empty. If there are too
            many, neighbors share a column, which shows their maximum.
    """
    from matplotlib.colors import LogNorm

    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    values = np.array([drawable_values(row.get(name) for row in rows) for name in names])
    values[~(values > 0)] = np.nan
    if np.isnan(values).all():
        return ""
    group_size = -(-len(rows) // _MAX_HEATMAP_COLUMNS)
    starts = range(0, len(rows), group_size)
    cells = np.fmax.reduceat(values, starts, axis=1)
    steps = [drawable_values(row.get("step") for row in rows[i : i + group_size]) for i in starts]
    tooltips: list[Tooltip] = []
    for i, column in enumerate(cells.T):
        lines = (f"{k}: {format_number(v)}" for k, v in zip(names, column, strict=True) if v > 0)
        tooltips.append((i - 0.5, i + 0.5, [format_steps(steps[i].tolist()), *lines]))
    low, high = np.nanmin(cells), np.nanmax(cells)
    label = f"{title}, a heat map, from {format_number(low)} to {format_number(high)}."
    with new_axes(12.1, 1.3 + 0.17 * max(6, min(len(names), 45)), salt=title) as axes:
        norm = LogNorm(low, high) if high > low else LogNorm(low / 2, high * 2)
        image = axes.imshow(cells, "viridis", norm, aspect="auto", interpolation="none")
        colors = axes.figure.colorbar(image, pad=0.01)
        colors.set_ticks((low, high), labels=[format_number(low), format_number(high)])
        colors.minorticks_off()
        axes.set_title(_plot_label(title), loc="left", fontsize=11)
        axes.set_xlabel(
            "optimizer step" + f"\neach column: maximum of {group_size}" * (group_size > 1)
        )
        axes.grid(visible=False)
        shown = range(0, len(starts), -(-len(starts) // 8))
        axes.set_xticks(shown, [format_number(steps[i][0]) for i in shown])
        shown = range(0, len(names), -(-len(names) // 40))
        axes.set_yticks(shown, [_plot_label(names[i]) for i in shown])
        return _chart_html(axes, label, tooltips, full_width=True)


def _plot_label(text: str) -> str:
    """Text for a plot, with the middle of long text left out."""
    text, half = clean_text(text), _MAX_LABEL_CHARS // 2
    return text if len(text) <= _MAX_LABEL_CHARS else f"{text[: half - 1]}…{text[-half:]}"


def _line_tooltips(
    series: Sequence[Series],
    x_limits: tuple[float, float],
    format_value: Callable[[float], str],
) -> Iterator[Tooltip]:
    """Bands of a chart with the minimum and maximum of each curve over their steps."""
    xs = np.unique(np.concatenate([curve.drawn[:, 0] for curve in series]))
    groups = np.array_split(xs, min(len(xs), _MAX_TOOLTIPS))
    boundaries = ((a[-1] + b[0]) / 2 for a, b in itertools.pairwise(groups))
    edges = itertools.pairwise([x_limits[0], *boundaries, x_limits[1]])
    for group, (left, right) in zip(groups, edges, strict=True):
        lines = [format_steps(group.tolist())]
        for curve in series:
            x, y = curve.drawn.T
            values = y[(x >= group[0]) & (x <= group[-1])]
            if len(values):
                low, high = format_value(values.min()), format_value(values.max())
                lines.append(f"{curve.label}: {low}" + (f" to {high}" if high != low else ""))
        yield left, right, lines


def _chart_html(
    axes: Axes, label: str, tooltips: Iterable[Tooltip], *, full_width: bool = False
) -> str:
    """The plot of `axes` as HTML.

    Args:
        axes: the finished axes.
        label: text description for screen readers.
        tooltips: vertical bands that show lines of text.
        full_width: as wide as the page.
    """
    svg = to_svg(axes)
    svg = svg[svg.index("<svg") + len("<svg") : svg.rindex("</svg>")]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg, count=2)  # HTML knows these names
    svg = svg.replace("<g id=", "<g class=")  # nothing refers to these
    svg = re.sub("<(path|use) [^>]*", lambda tag: re.sub(r"(\.\d)\d+|\n", r"\1", tag[0]), svg)
    svg = re.sub(r">\s+<", "><", svg)
    bands = []
    for left, right, lines in tooltips:
        # In units of the SVG, but from the bottom.
        (x0, y0), (x1, y1) = axes.get_xaxis_transform().transform([(left, 0), (right, 1)])
        y, text = axes.figure.bbox.height - y1, escape_html("\n".join(lines))
        box = f'x="{x0:.1f}" y="{y:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        bands.append(f"<rect {box}><title>{text}</title></rect>")
    return (
        f'<figure class="chart{" wide" if full_width else ""}">'
        f'<svg role="img" aria-label="{escape_html(label)}"{svg}'
        f'<g class="bands" aria-hidden="true">{"".join(bands)}</g></svg></figure>\n'
    )
