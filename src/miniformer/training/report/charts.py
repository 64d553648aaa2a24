"""Charts as inline SVG without scripts, of any width, with colors from `report.css`.

A plot is an SVG in a box of 1000 x 1000, y downwards, that is stretched to its frame. Text and
markers must not be stretched: they are positioned above the SVG in percent of the frame, so text
has the size of the text on the page.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from miniformer.training.report.chart_parts import (
    Scale,
    chart_frame,
    escape_html,
    format_coordinate,
    format_number,
    format_steps,
    hover_band,
    is_drawable,
    make_scale,
)

Point = tuple[float, float]

_MAX_POINTS = 600  # approximate maximum of a curve; longer ones are downsampled
_MAX_HOVER_BANDS = 80  # bands of a chart with a tooltip
_MAX_MARKERS = 60  # longer series have no markers
_LOG_SCALE_MIN_RATIO = 30.0  # max / min from which `log=None` selects a logarithmic scale
NUM_HEATMAP_COLORS = 24  # as in report.css
_MAX_HEATMAP_COLUMNS = 60  # longer series share columns


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        label: the label in the legend.
        points: (x, y), x an integer; a y that is not finite leaves a gap.
        css_class: CSS classes: s1 to s4 for the color, `faint` or `dashed`.
        markers: draw a marker at each point, unless there are too many.
    """

    label: str
    points: Sequence[Point]
    css_class: str = "s1"
    markers: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "optimizer step",
    unit: str = "",
    log: bool | None = False,
    include_zero: bool = False,
    format_value: Callable[[float], str] = format_number,
    x_range: Point | None = None,
    annotation: tuple[float, float, str] | None = None,
    note: str = "",
    full_width: bool = False,
) -> str:
    """A line chart, HTML; empty without drawable values.

    Args:
        title: the title.
        series: the curves, the last one on top.
        x_label: label of the x axis.
        unit: unit of y.
        log: logarithmic y axis, which omits values that are not positive; None: logarithmic if
            all values are positive and their range is wide.
        include_zero: start the y axis at 0.
        format_value: formats values of y.
        x_range: ends of the x axis; None: from the points.
        annotation: x, y and text of an annotated point.
        note: a line below the chart.
        full_width: as wide as the page.
    """
    ys = [y for curve in series for x, y in curve.points if is_drawable(x) and is_drawable(y)]
    if log is None:
        log = bool(ys) and min(ys) > 0 and max(ys) >= _LOG_SCALE_MIN_RATIO * min(ys)
    shown = []
    for curve in series:
        points = [
            (x, y if is_drawable(y, log=log) else math.nan)
            for x, y in sorted(curve.points, key=lambda point: point[0])
            if is_drawable(x)
        ]
        if not all(math.isnan(y) for _, y in points):
            shown.append(dataclasses.replace(curve, points=points))
    if not shown:
        return ""
    drawn = [(x, y) for curve in shown for x, y in curve.points if not math.isnan(y)]
    xs = sorted({x for x, _ in drawn})
    low, high = x_range or (xs[0], xs[-1])
    is_range = high - low > 1e-9 * max(abs(low), abs(high))
    x_scale = Scale(low, high) if is_range else make_scale([low, high])
    y_scale = make_scale([y for _, y in drawn], log=log, include_zero=include_zero)
    grid = "".join(
        f"M0 {format_coordinate(1000 - y_scale.position(y))}H1000" for y in y_scale.ticks()
    )
    drawing = f'<path class="grid" d="{grid}"/>'
    drawing += "".join(
        f'<path class="line {curve.css_class}" d="{svg_path(curve.points, x_scale, y_scale)}"/>'
        for curve in shown
    )
    markers = "".join(_markers(curve, x_scale, y_scale) for curve in shown if curve.markers)
    label = ""
    if annotation is not None and is_drawable(annotation[1], log=log):
        x, y, text = annotation
        x_position = x_scale.position(x)
        left = format_coordinate(x_position / 10)
        top = format_coordinate(100 - y_scale.position(y) / 10)
        drawing += f'<path class="mark" d="M{format_coordinate(x_position)} 0V1000"/>'
        markers += f'<circle class="best" cx="{left}%" cy="{top}%" r="7"/>'
        side = "before" if x_position > 500 else "behind"
        label = f'<b class="annotation {side}" style="left:{left}%">{escape_html(text)}</b>'
    final_values = (
        f"{curve.label}: {format_value(_last_value(curve))} at the end" for curve in shown
    )
    return chart_frame(
        title,
        drawing,
        aria_label=f"{title}, a line chart. {'; '.join(final_values)}.",
        overlay=(f'<svg class="dots" aria-hidden="true">{markers}</svg>' if markers else "")
        + label,
        hover_bands="".join(_hover_bands(shown, xs, x_scale, format_value)),
        unit=", ".join(filter(None, (unit, "logarithmic" if log else ""))),
        legend=[(curve.css_class, curve.label) for curve in shown] if len(shown) > 1 else [],
        y_ticks=[(100 - y_scale.position(y) / 10, format_value(y)) for y in y_scale.ticks()],
        x_ticks=[
            (x_scale.position(x) / 10, format_number(x)) for x in x_scale.ticks() if x == int(x)
        ],
        x_label=x_label,
        note=note,
        css_class="wide" if full_width else "",
        height=18.0 if full_width else 11.0,
    )


def heat_map(
    title: str,
    columns: Sequence[tuple[float, dict[str, float]]],
    *,
    x_label: str = "optimizer step",
    note: str = "",
) -> str:
    """A heat map of positive values by name and step, with logarithmic colors, HTML.

    The result is empty without drawable values.

    Args:
        title: the title.
        columns: (step, name -> value); values that are not finite or not positive stay empty. If
            there are too many, neighbors share a column, which shows their maximum.
        x_label: label of the x axis.
        note: a line below the map.
    """
    names = list(dict.fromkeys(name for _, values in columns for name in values))
    group_size = math.ceil(len(columns) / _MAX_HEATMAP_COLUMNS) or 1
    groups = [columns[i : i + group_size] for i in range(0, len(columns), group_size)]
    cells: dict[tuple[int, int], float] = {}
    for (column, group), (row, name) in itertools.product(enumerate(groups), enumerate(names)):
        values = [values.get(name, math.nan) for _, values in group]
        if drawable := [value for value in values if is_drawable(value, log=True)]:
            cells[column, row] = max(drawable)
    if not cells:
        return ""
    low, high = min(cells.values()), max(cells.values())
    color = Scale(low, high, True) if high > low else Scale(low / 2, high * 2, True)
    width, height = 1000 / len(groups), 1000 / len(names)
    shades: dict[int, str] = {}
    for (column, row), value in cells.items():
        shade = min(NUM_HEATMAP_COLORS - 1, int(color.position(value) / 1000 * NUM_HEATMAP_COLORS))
        left, right = (format_coordinate(i * width) for i in (column, column + 1))
        top, bottom = (format_coordinate(i * height) for i in (row, row + 1))
        cell = f"M{left} {top}H{right}V{bottom}H{left}z"
        shades[shade] = shades.get(shade, "") + cell
    bands = []
    for column, group in enumerate(groups):
        lines = [
            f"{name}: {format_number(cells[column, row])}"
            for row, name in enumerate(names)
            if (column, row) in cells
        ]
        steps = format_steps([step for step, _ in group])
        bands.append(hover_band(column * width, width, [steps, *lines]))
    if group_size > 1:
        note = f"Each column shows the maximum of {group_size} measurements. {note}".rstrip()
    stride = math.ceil(len(names) / 40)
    return chart_frame(
        title,
        "".join(f'<path class="h{s}" d="{cell}"/>' for s, cell in sorted(shades.items())),
        aria_label=f"{title}, a heat map, from {format_number(low)} to {format_number(high)}.",
        hover_bands="".join(bands),
        y_ticks=[((row + 0.5) * height / 10, name) for row, name in enumerate(names)][::stride],
        x_ticks=[
            ((i + 0.5) * width / 10, format_number(group[0][0])) for i, group in enumerate(groups)
        ],
        x_label=x_label,
        note=note,
        css_class="wide heat",
        height=max(6.0, 0.95 * min(len(names), 45)),
        footer=f'<p class="scale">{format_number(low)}<i></i>{format_number(high)} '
        "(logarithmic)</p>",
    )


def svg_path(points: Sequence[Point], x_scale: Scale, y_scale: Scale) -> str:
    """A curve as SVG path data, with a gap where y is NaN.

    Args:
        points: points sorted by x.
        x_scale: scale of x.
        y_scale: scale of y.
    """
    parts = []
    for is_gap, group in itertools.groupby(points, key=lambda point: math.isnan(point[1])):
        if not is_gap:
            corners = [
                f"{format_coordinate(x_scale.position(x))} "
                f"{format_coordinate(1000 - y_scale.position(y))}"
                for x, y in downsample(list(group))
            ]
            # A single point is a line of zero length, drawn as a dot by its round caps.
            parts.append("M" + "L".join(corners) if len(corners) > 1 else f"M{corners[0]}h0")
    return "".join(parts)


def downsample(points: list[Point]) -> list[Point]:
    """About `_MAX_POINTS` of the points: the minimum and maximum of each group of neighbors.

    Args:
        points: points sorted by x.
    """
    if len(points) <= _MAX_POINTS:
        return points
    group_size = math.ceil(2 * len(points) / _MAX_POINTS)
    indices = {0, len(points) - 1}
    for first in range(0, len(points), group_size):
        group = range(first, min(first + group_size, len(points)))
        indices |= {min(group, key=lambda i: points[i][1]), max(group, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(indices)]


def moving_average(points: Sequence[Point], window: int) -> list[Point]:
    """Centered moving average over `window` points, over fewer near both ends.

    At the start, where losses fall fast, the window is symmetric.

    Args:
        points: points sorted by x; those that are not finite are omitted.
        window: an odd number.
    """
    drawable = [(x, y) for x, y in points if is_drawable(y)]
    sums = list(itertools.accumulate((y for _, y in drawable), initial=0.0))
    means = []
    for i, (x, _) in enumerate(drawable):
        half = min(window // 2, i)
        first, end = i - half, min(len(drawable), i + half + 1)
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


def _markers(series: Series, x_scale: Scale, y_scale: Scale) -> str:
    drawn = [point for point in series.points if not math.isnan(point[1])]
    if len(drawn) > _MAX_MARKERS:
        return ""
    return "".join(
        f'<circle class="{series.css_class}" cx="{format_coordinate(x_scale.position(x) / 10)}%" '
        f'cy="{format_coordinate(100 - y_scale.position(y) / 10)}%" r="3.5"/>'
        for x, y in drawn
    )


def _hover_bands(
    series: Sequence[Series], xs: list[float], x_scale: Scale, format_value: Callable[[float], str]
) -> Iterator[str]:
    """Hover bands with the minimum and maximum of each curve over the steps of the band."""
    group_size = math.ceil(len(xs) / _MAX_HOVER_BANDS)
    groups = [xs[i : i + group_size] for i in range(0, len(xs), group_size)]
    boundaries = [x_scale.position((a[-1] + b[0]) / 2) for a, b in itertools.pairwise(groups)]
    edges = [0.0, *boundaries, 1000.0]
    for group, (left, right) in zip(groups, itertools.pairwise(edges), strict=True):
        lines = [format_steps(group)]
        for curve in series:
            first = bisect.bisect_left(curve.points, (group[0], -math.inf))
            points = curve.points[first : bisect.bisect_right(curve.points, (group[-1], math.inf))]
            if values := [y for _, y in points if not math.isnan(y)]:
                low, high = format_value(min(values)), format_value(max(values))
                lines.append(f"{curve.label}: {low}" + (f" to {high}" if high != low else ""))
        yield hover_band(left, right - left, lines)


def _last_value(series: Series) -> float:
    return next(y for _, y in reversed(series.points) if not math.isnan(y))
