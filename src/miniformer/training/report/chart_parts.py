"""What charts are made of: scales, numbers as text, and the frame around a drawing."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

_MAX_X_LABELS = 8  # along an x axis, at most
_MAX_ABS_VALUE = 1e100  # of drawn values


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

    def position(self, value: float) -> float:
        """Where a value stands: 0 for `low`, 1000 for `high`."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return 1000 * (value - low) / (high - low)

    def ticks(self, max_ticks: int = 5) -> list[float]:
        """Round values within the scale, from low to high."""
        if not self.log or self.high / self.low < 10:
            return _linear_ticks(self.low, self.high, max_ticks)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for multiples in ((1, 2, 5), (1, 3), (1,)):
            values = [m * 10.0**power for power in range(first, last + 1) for m in multiples]
            within = [value for value in values if self.low <= value <= self.high]
            if len(within) <= max_ticks:
                break
        return within[:: math.ceil(len(within) / max_ticks)]


def _linear_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [float(f"{number * step:.12g}") for number in numbers]


def is_drawable(value: float, *, log: bool = False) -> bool:
    """Whether a value has a place on a scale of any use.

    Args:
        value: any number.
        log: whether the scale is logarithmic.
    """
    return -_MAX_ABS_VALUE < value < _MAX_ABS_VALUE and (value > 1 / _MAX_ABS_VALUE or not log)


def make_scale(values: Sequence[float], *, log: bool = False, include_zero: bool = False) -> Scale:
    """A scale with a place for each of the values, and some room around them.

    Args:
        values: `drawable` ones, at least one.
        log: whether it is logarithmic.
        zero: whether it begins with 0, where it is linear.
    """
    low, high = min(values), max(values)
    if log:
        room = max(1.05, (high / low) ** 0.05)
        return Scale(low / room, high * room, True)
    spread, size = high - low, max(abs(low), abs(high))
    if spread <= 1e-9 * size:  # all are the same, but for rounding
        spread = size
    room = 0.05 * spread if spread > 1 / _MAX_ABS_VALUE else 0.5
    return Scale(0.0 if include_zero and low >= 0 else low - room, high + room)


def format_number(value: float) -> str:
    """A figure as text: whole numbers and large ones to the unit, others to four digits."""
    if math.isfinite(value) and (value == int(value) or abs(value) >= 1e4) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_percent(fraction: float) -> str:
    """A share as text, to three digits."""
    return f"{100 * fraction:.3g} %"


def format_steps(steps: Sequence[float]) -> str:
    """`step 3`, or `steps 3 to 9`."""
    first, last = format_number(min(steps)), format_number(max(steps))
    return f"step {first}" if first == last else f"steps {first} to {last}"


def format_coordinate(value: float) -> str:
    """A coordinate, to a tenth: enough for 1000 of them across a page."""
    return f"{round(value, 1) + 0.0:g}"  # + 0.0: there is no -0


def escape_html(value: object) -> str:
    """Anything as text of a page: nothing in it is taken for markup, nothing cannot be written."""
    plain = "".join(
        c
        if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f")
        else "\N{REPLACEMENT CHARACTER}"
        for c in str(value)
    )
    return html.escape(plain.encode("utf-8", "replace").decode("utf-8"))


def hover_band(left: float, width: float, lines: Sequence[str]) -> str:
    """A part of a chart, from top to bottom, that tells `lines` when it is pointed at."""
    title = escape_html("\n".join(lines))
    return (
        f'<rect x="{format_coordinate(left)}" width="{format_coordinate(width)}" height="1000">'
        f"<title>{title}</title></rect>"
    )


def chart_frame(
    title: str,
    drawing: str,
    *,
    aria_label: str,
    overlay: str = "",
    hover_bands: str = "",
    unit: str = "",
    legend: Sequence[tuple[str, str]] = (),
    y_ticks: Sequence[tuple[float, str]] = (),
    x_ticks: Sequence[tuple[float, str]] = (),
    x_label: str = "",
    note: str = "",
    css_class: str = "",
    height: float = 15.0,
    footer: str = "",
) -> str:
    """A chart, HTML: a headline, the drawing with its axes, and what is to be known about it.

    Args:
        title: its headline.
        drawing: SVG in a box of 1000 x 1000, stretched to the frame.
        told_as: what the chart says, for those who cannot see it.
        above: HTML on top of it, placed in percent.
        bands: from `band`.
        unit: of y.
        legend: (CSS class, name) of each curve.
        rows: (place from the top in percent, text) along the y axis.
        columns: (place from the left in percent, text) along the x axis.
        x_label: what x is.
        note: a line below.
        look: CSS classes.
        height: of the drawing, in rem.
        after: HTML below the axis.
    """
    names = "".join(f'<li class="{look}">{escape_html(name)}</li>' for look, name in legend)
    stretched = 'viewBox="0 0 1000 1000" preserveAspectRatio="none"'
    every = math.ceil(len(x_ticks) / _MAX_X_LABELS) or 1
    return "".join(
        (
            f'<figure class="chart {css_class}"><figcaption><h3>{escape_html(title)}</h3>',
            f"<small>{escape_html(unit)}</small>" if unit else "",
            f"<ul>{names}</ul>" if names else "",
            f'</figcaption><div class="plot" style="height:{format_coordinate(height)}rem">',
            f'<svg {stretched} role="img" aria-label="{escape_html(aria_label)}">{drawing}</svg>',
            overlay,
            f'<svg class="bands" {stretched} aria-hidden="true">{hover_bands}</svg>'
            if hover_bands
            else "",
            *(
                f'<b class="y" style="top:{format_coordinate(y)}%">{escape_html(word)}</b>'
                for y, word in y_ticks
            ),
            *(
                f'<b class="x" style="left:{format_coordinate(x)}%">{escape_html(word)}</b>'
                for x, word in x_ticks[::every]
            ),
            f'</div><p class="axis">{escape_html(x_label)}</p>{footer}',
            f'<p class="note">{escape_html(note)}</p>' if note else "",
            "</figure>\n",
        )
    )
