"""Charts as inline SVG: no script, any width, colours from the page (`report.css`).

The plot is an SVG in a box of 1000 x 1000, y downwards, that is stretched to its frame; what must
not be stretched, text and dots, is placed above it in percent of the frame. So a chart's letters
are as large on a phone and on paper as those of the text around it.
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

_MAX_POINTS = 600  # of a curve, about; of more, the lowest and the highest of neighbours are drawn
_MAX_HOVER_BANDS = 80  # places of a chart that tell their figures when pointed at
_MAX_MARKERS = 60  # points of a series up to which each one has a dot
_LOG_SCALE_MIN_RATIO = (
    30.0  # largest / smallest value from which `log=None` takes a logarithmic scale
)
NUM_HEATMAP_COLORS = 24  # colours of a heat map, as in report.css
_MAX_HEATMAP_COLUMNS = 60  # of a heat map, at most


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        label: its name in the legend.
        points: (x, y), x a whole number; a y that is not finite interrupts the curve.
        look: CSS classes: s1 to s4 for its colour, `faint` or `dashed`.
        dots: whether its points are marked, where there are not too many.
    """

    label: str
    points: Sequence[Point]
    css_class: str = "s1"
    markers: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "optimiser step",
    unit: str = "",
    log: bool | None = False,
    include_zero: bool = False,
    format_value: Callable[[float], str] = format_number,
    x_range: Point | None = None,
    annotation: tuple[float, float, str] | None = None,
    note: str = "",
    full_width: bool = False,
) -> str:
    """A line chart, HTML; empty where nothing can be drawn.

    Args:
        title: its headline.
        series: its curves, the last one on top.
        x_label: what x is.
        unit: of y.
        log: whether y is logarithmic (what is not positive is then left out); None: where all
            values are positive, and far apart.
        zero: whether y begins with 0.
        show: y as text.
        x_range: ends of the x axis; None: the points' own.
        mark: x, y and words: a point to be pointed out.
        note: a line below.
        wide: whether it is as wide as the page.
    """
    every = [y for one in series for x, y in one.points if is_drawable(x) and is_drawable(y)]
    if log is None:
        log = bool(every) and min(every) > 0 and max(every) >= _LOG_SCALE_MIN_RATIO * min(every)
    shown = []
    for one in series:
        points = [
            (x, y if is_drawable(y, log=log) else math.nan)
            for x, y in sorted(one.points, key=lambda point: point[0])
            if is_drawable(x)
        ]
        if not all(math.isnan(y) for _, y in points):
            shown.append(dataclasses.replace(one, points=points))
    if not shown:
        return ""
    good = [(x, y) for one in shown for x, y in one.points if not math.isnan(y)]
    xs = sorted({x for x, _ in good})
    low, high = x_range or (xs[0], xs[-1])
    apart = high - low > 1e-9 * max(abs(low), abs(high))
    across = Scale(low, high) if apart else make_scale([low, high])
    up = make_scale([y for _, y in good], log=log, include_zero=include_zero)
    grid = "".join(f"M0 {format_coordinate(1000 - up.position(y))}H1000" for y in up.ticks())
    drawing = f'<path class="grid" d="{grid}"/>'
    drawing += "".join(
        f'<path class="line {one.css_class}" d="{svg_path(one.points, across, up)}"/>'
        for one in shown
    )
    above = "".join(_markers(one, across, up) for one in shown if one.markers)
    words = ""
    if annotation is not None:
        x, y, said = annotation
        left, top = (
            format_coordinate(across.position(x) / 10),
            format_coordinate(100 - up.position(y) / 10),
        )
        drawing += f'<path class="mark" d="M{format_coordinate(across.position(x))} 0V1000"/>'
        above += f'<circle class="best" cx="{left}%" cy="{top}%" r="7"/>'
        side = "before" if across.position(x) > 500 else "behind"
        words = f'<b class="said {side}" style="left:{left}%">{escape_html(said)}</b>'
    lasts = (f"{one.label}: {format_value(_last_value(one))} at the end" for one in shown)
    return chart_frame(
        title,
        drawing,
        aria_label=f"{title}, a line chart. {'; '.join(lasts)}.",
        overlay=(f'<svg class="dots" aria-hidden="true">{above}</svg>' if above else "") + words,
        hover_bands="".join(_hover_bands(shown, xs, across, format_value)),
        unit=", ".join(filter(None, (unit, "logarithmic" if log else ""))),
        legend=[(one.css_class, one.label) for one in shown] if len(shown) > 1 else [],
        y_ticks=[(100 - up.position(y) / 10, format_value(y)) for y in up.ticks()],
        x_ticks=[
            (across.position(x) / 10, format_number(x)) for x in across.ticks() if x == int(x)
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
    x_label: str = "optimiser step",
    note: str = "",
) -> str:
    """A map of positive values, places x steps, by logarithmic colour; HTML, empty without values.

    Args:
        title: its headline.
        columns: (step, place -> value); what is not finite or not above 0 stays empty. Where there
            are too many, neighbours share a column, which shows their largest.
        x_label: what the columns are.
        note: a line below.
    """
    places = list(dict.fromkeys(place for _, values in columns for place in values))
    each = math.ceil(len(columns) / _MAX_HEATMAP_COLUMNS) or 1
    groups = [columns[i : i + each] for i in range(0, len(columns), each)]
    cells: dict[tuple[int, int], float] = {}
    for (column, group), (row, place) in itertools.product(enumerate(groups), enumerate(places)):
        values = [values.get(place, math.nan) for _, values in group]
        if good := [value for value in values if is_drawable(value, log=True)]:
            cells[column, row] = max(good)
    if not cells:
        return ""
    low, high = min(cells.values()), max(cells.values())
    colour = Scale(low, high, True) if high > low else Scale(low / 2, high * 2, True)
    width, height = 1000 / len(groups), 1000 / len(places)
    shades: dict[int, str] = {}
    for (column, row), value in cells.items():
        shade = min(NUM_HEATMAP_COLORS - 1, int(colour.position(value) / 1000 * NUM_HEATMAP_COLORS))
        corner, right = (
            f"M{format_coordinate(column * width)} {format_coordinate(row * height)}",
            (column + 1) * width,
        )
        cell = f"{corner}H{format_coordinate(right)}V{format_coordinate((row + 1) * height)}H{format_coordinate(column * width)}z"
        shades[shade] = shades.get(shade, "") + cell
    bands = []
    for column, group in enumerate(groups):
        told_here = [
            f"{place}: {format_number(cells[column, row])}"
            for row, place in enumerate(places)
            if (column, row) in cells
        ]
        steps = format_steps([step for step, _ in group])
        bands.append(hover_band(column * width, width, [steps, *told_here]))
    if each > 1:
        note = f"Each column shows the largest of {each} measurements. {note}".rstrip()
    every = math.ceil(len(places) / 40)
    return chart_frame(
        title,
        "".join(f'<path class="h{s}" d="{cell}"/>' for s, cell in sorted(shades.items())),
        aria_label=f"{title}, a heat map, from {format_number(low)} to {format_number(high)}.",
        hover_bands="".join(bands),
        y_ticks=[((row + 0.5) * height / 10, place) for row, place in enumerate(places)][::every],
        x_ticks=[
            ((i + 0.5) * width / 10, format_number(group[0][0])) for i, group in enumerate(groups)
        ],
        x_label=x_label,
        note=note,
        css_class="wide heat",
        height=max(6.0, 0.95 * min(len(places), 45)),
        footer=f'<p class="scale">{format_number(low)}<i></i>{format_number(high)} (logarithmic)</p>',
    )


def svg_path(points: Sequence[Point], x_scale: Scale, y_scale: Scale) -> str:
    """A curve as SVG path data, with a gap where y is not a number.

    Args:
        points: sorted by x.
        across: of x.
        up: of y.
    """
    parts = []
    for is_gap, run in itertools.groupby(points, key=lambda point: math.isnan(point[1])):
        if not is_gap:
            drawn = [
                f"{format_coordinate(x_scale.position(x))} {format_coordinate(1000 - y_scale.position(y))}"
                for x, y in downsample(list(run))
            ]
            # A point without neighbours is a line of no length, of which round ends make a dot.
            parts.append("M" + "L".join(drawn) if len(drawn) > 1 else f"M{drawn[0]}h0")
    return "".join(parts)


def downsample(points: list[Point]) -> list[Point]:
    """At most about `_POINTS` of the points, with the lowest and the highest of neighbours.

    Args:
        points: sorted by x; of some, all are kept.
    """
    if len(points) <= _MAX_POINTS:
        return points
    each = math.ceil(2 * len(points) / _MAX_POINTS)
    kept = {0, len(points) - 1}
    for first in range(0, len(points), each):
        group = range(first, min(first + each, len(points)))
        kept |= {min(group, key=lambda i: points[i][1]), max(group, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def moving_average(points: Sequence[Point], window: int) -> list[Point]:
    """Means of `window` neighbours, half of them on each side; of fewer near both ends.

    At the beginning, where losses fall fast, there are as many on each side.

    Args:
        points: sorted by x; those that are not finite are left out.
        window: an odd number.
    """
    good = [(x, y) for x, y in points if is_drawable(y)]
    sums = list(itertools.accumulate((y for _, y in good), initial=0.0))
    means = []
    for i, (x, _) in enumerate(good):
        half = min(window // 2, i)
        first, end = i - half, min(len(good), i + half + 1)
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


def _markers(series: Series, x_scale: Scale, y_scale: Scale) -> str:
    good = [point for point in series.points if not math.isnan(point[1])]
    if len(good) > _MAX_MARKERS:
        return ""
    return "".join(
        f'<circle class="{series.css_class}" cx="{format_coordinate(x_scale.position(x) / 10)}%" '
        f'cy="{format_coordinate(100 - y_scale.position(y) / 10)}%" r="3.5"/>'
        for x, y in good
    )


def _hover_bands(
    series: Sequence[Series], xs: list[float], x_scale: Scale, format_value: Callable[[float], str]
) -> Iterator[str]:
    """Parts of the plot that tell the figures of their steps: their lowest and highest."""
    each = math.ceil(len(xs) / _MAX_HOVER_BANDS)
    groups = [xs[i : i + each] for i in range(0, len(xs), each)]
    between = [x_scale.position((a[-1] + b[0]) / 2) for a, b in itertools.pairwise(groups)]
    edges = [0.0, *between, 1000.0]
    for group, (left, right) in zip(groups, itertools.pairwise(edges), strict=True):
        lines = [format_steps(group)]
        for one in series:
            first = bisect.bisect_left(one.points, (group[0], -math.inf))
            here = one.points[first : bisect.bisect_right(one.points, (group[-1], math.inf))]
            if values := [y for _, y in here if not math.isnan(y)]:
                low, high = format_value(min(values)), format_value(max(values))
                lines.append(f"{one.label}: {low}" + (f" to {high}" if high != low else ""))
        yield hover_band(left, right - left, lines)


def _last_value(series: Series) -> float:
    return next(y for _, y in reversed(series.points) if not math.isnan(y))
