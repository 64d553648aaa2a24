"""Charts as inline SVG: they need no script, fit any width and take their colours from the page.

The plot itself is an SVG stretched to its frame, in a box of 1000 x 1000 with y downwards; what
must not be stretched, text and dots, is placed above it in percent of the frame. So a chart has
the same letters on a phone and on paper. Classes are those of `report.css`.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Iterator, Sequence

Point = tuple[float, float]

_POINTS = 300  # columns of a curve with more points than that have two, their lowest and highest
_BANDS = 80  # places of a chart that tell their figures when pointed at
_DOTS = 60  # points of a series up to which each one has a dot
_LOG_RATIO = 30.0  # largest / smallest value from which `log=None` takes a logarithmic scale
_SHADES = 24  # colours of a heat map, as in report.css
_COLUMNS = 60  # of a heat map, at most


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        label: its name in the legend.
        points: (x, y); a y that is not finite interrupts the curve.
        look: CSS class of its colour, s1 to s4, and of its stroke: `faint`, `dashed`.
        dots: whether its points are marked, where there are not too many.
    """

    label: str
    points: Sequence[Point]
    look: str = "s1"
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Scale:
    """Values to places between 0 and 1000.

    Args:
        low, high: values at both ends, low < high; both above 0 where `log`.
        log: whether equal ratios take equal room.
    """

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands: 0 for `low`, 1000 for `high`."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return 1000 * (value - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the scale."""
        if not self.log or self.high / self.low < 10:
            return _round_values(self.low, self.high, most)
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        every = max(1, math.ceil((last - first + 1) / most))
        powers = [10.0**power for power in range(first, last + 1, every)]
        if len(powers) > 2:
            return powers
        steps = (m * 10.0**p for p in range(first - 1, last + 1) for m in (1, 2, 5))
        return [value for value in steps if self.low <= value <= self.high]


def scale_of(values: Sequence[float], *, log: bool | None = False, zero: bool = False) -> Scale:
    """The scale on which all values have a place, with some room around them.

    Args:
        values: finite ones.
        log: None: where the values are positive and far apart.
        zero: whether the scale begins with 0; for a linear one.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log is None:
        log = low > 0 and high / low >= _LOG_RATIO
    if log and low > 0:
        room = max(1.05, (high / low) ** 0.04)
        return Scale(low / room, high * room, True)
    if zero:
        low, high = min(low, 0.0), high * 1.06 if high > 0 else 0.0
        return Scale(low, high if high > low else low + 1.0)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return Scale(low - room, high + room)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "optimiser step",
    unit: str = "",
    log: bool | None = None,
    zero: bool = False,
    show: Callable[[float], str] | None = None,
    x_range: Point | None = None,
    mark: tuple[float, float, str] | None = None,
    note: str = "",
    wide: bool = False,
) -> str:
    """A line chart, HTML; nothing where no point is finite.

    Args:
        title: its headline.
        series: its curves, the last one on top.
        x_label: what x is.
        unit: of y, for the headline.
        log: whether y is logarithmic, then without what is not positive; None: as the values are.
        zero: whether y begins with 0.
        show: y as text; None: `told`.
        x_range: ends of the x axis; None: those of the points.
        mark: x, y and a word: a point to be pointed out.
        note: a line below.
        wide: whether it is as wide as the page.
    """
    show = show or told
    series = [dataclasses.replace(one, points=_sorted(one.points)) for one in series]
    good = [point for one in series for point in one.points if math.isfinite(point[1])]
    if log:
        good = [point for point in good if point[1] > 0]
    if not good:
        return ""
    xs = sorted({x for x, _ in good})
    low, high = x_range or (xs[0], xs[-1])
    across = Scale(low, high) if high > low else Scale(low - 0.5, low + 0.5)
    up = scale_of([y for _, y in good], log=log, zero=zero)
    shown = [one for one in series if any(point in set(good) for point in one.points)]
    curves = "".join(_curve(one, across, up) for one in shown)
    dots, words = "".join(_dots(one, across, up) for one in shown), ""
    if mark is not None:
        x, y = across.place(mark[0]), up.place(mark[1])
        curves += f'<path class="mark" d="M{_n(x)} 0V1000"/>'
        dots += f'<circle class="best" cx="{_n(x / 10)}%" cy="{_n(100 - y / 10)}%" r="6"/>'
        side = "left" if x > 500 else "right"
        words = f'<span class="word {side}" style="left:{_n(x / 10)}%">{_text(mark[2])}</span>'
    grid = "".join(f"M0 {_n(1000 - up.place(y))}H1000" for y in up.ticks())
    bands = "".join(_bands(shown, xs, across, show))
    return _figure(
        title,
        unit=unit + (", logarithmic" if up.log else ""),
        legend=[(one.look, one.label) for one in shown] if len(shown) > 1 else [],
        drawing=f'<path class="grid" d="{grid}"/>{curves}',
        above=f'<svg class="dots" aria-hidden="true">{dots}</svg>{words}'
        f'<svg class="bands" viewBox="0 0 1000 1000" preserveAspectRatio="none">{bands}</svg>',
        rows=[(100 - up.place(y) / 10, show(y)) for y in up.ticks()],
        columns=[(across.place(x) / 10, told(x)) for x in across.ticks()],
        x_label=x_label,
        note=note,
        look="wide" if wide else "",
    )


def heat_map(
    title: str, places: Sequence[str], columns: Sequence[tuple[float, dict[str, float]]],
    *, x_label: str = "optimiser step", note: str = "",
) -> str:  # fmt: skip
    """A map of positive values, places x steps, with logarithmic colour; HTML.

    Args:
        title: its headline.
        places: names of its rows, from the top.
        columns: (step, place -> value); what is missing, not finite or not above 0 stays empty.
            Neighbours share a column, which shows their largest, where there are too many.
        x_label: what the columns are.
        note: a line below.
    """
    each = math.ceil(len(columns) / _COLUMNS) or 1
    groups = [columns[i : i + each] for i in range(0, len(columns), each)]
    cells: dict[tuple[int, int], float] = {}
    for column, group in enumerate(groups):
        for row, place in enumerate(places):
            values = [norms[place] for _, norms in group if _is_shown(norms.get(place))]
            if values:
                cells[column, row] = max(values)
    if not cells:
        return ""
    low, high = min(cells.values()), max(cells.values())
    colour = Scale(low, high, True) if high > low else Scale(low / 2, high * 2, True)
    width, height = 1000 / len(groups), 1000 / len(places)
    shades: dict[int, list[str]] = {}
    for (column, row), value in cells.items():
        shade = min(_SHADES - 1, int(colour.place(value) / 1000 * _SHADES))
        corner = f"M{_n(column * width)} {_n(row * height)}"
        shades.setdefault(shade, []).append(f"{corner}h{_n(width)}v{_n(height)}h-{_n(width)}z")
    drawing = "".join(f'<path class="h{s}" d="{"".join(d)}"/>' for s, d in sorted(shades.items()))
    bands = []
    for column, group in enumerate(groups):
        lines = [_steps([step for step, _ in group])]
        lines += [
            f"{p}: {told(cells[column, row])}" for row, p in enumerate(places) if (column, row) in cells
        ]
        bands.append(_band(column * width, width, lines))
    if each > 1:
        note = f"Each column shows the largest of {each} measurements. {note}"
    every, some = math.ceil(len(places) / 40), max(1, math.ceil(len(groups) / 6))
    ends = (told(low), told(math.sqrt(low * high)), told(high))
    legend = "<i></i>".join(f"<span>{end}</span>" for end in (ends[0], ends[2]))
    return _figure(
        title,
        unit="logarithmic colours",
        legend=[],
        drawing=drawing,
        above=f'<svg class="bands" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
        f"{''.join(bands)}</svg>",
        rows=[((i + 0.5) * height / 10, p) for i, p in enumerate(places) if i % every == 0],
        columns=[
            ((i + 0.5) * width / 10, told(groups[i][0][0])) for i in range(0, len(groups), some)
        ],
        x_label=x_label,
        note=note,
        look="wide heat",
        tall=max(7.0, 0.9 * min(len(places), 45)),
        after=f'<p class="scale">{legend}</p>',
    )


def told(value: float) -> str:
    """A figure as text: whole below 10^15 as it is, else to four digits."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15 or 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"
