"""Building blocks of charts: scales, number formats, and the frame of a chart."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

_MAX_X_LABELS = 8  # maximum labels of an x axis
_MAX_ABS_VALUE = 1e100  # larger values are not drawn


@dataclasses.dataclass(frozen=True)
class Scale:
    """A map from values to coordinates between 0 and 1000.

    Args:
        low, high: values at the ends, low < high; both positive if `log`.
        log: logarithmic scale.
    """

    low: float
    high: float
    log: bool = False

    def position(self, value: float) -> float:
        """Coordinate of a value: 0 for `low`, 1000 for `high`."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return 1000 * (value - low) / (high - low)

    def ticks(self, max_ticks: int = 5) -> list[float]:
        """Round values within the scale, in ascending order."""
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
    """Returns True if a value is finite and within the range of drawable values.

    Args:
        value: any number.
        log: for a logarithmic scale.
    """
    return -_MAX_ABS_VALUE < value < _MAX_ABS_VALUE and (value > 1 / _MAX_ABS_VALUE or not log)


def make_scale(values: Sequence[float], *, log: bool = False, include_zero: bool = False) -> Scale:
    """A scale that covers the values, with a margin.

    Args:
        values: drawable values, at least one.
        log: logarithmic scale.
        include_zero: start a linear scale at 0.
    """
    low, high = min(values), max(values)
    if log:
        room = max(1.05, (high / low) ** 0.05)
        return Scale(low / room, high * room, True)
    spread, size = high - low, max(abs(low), abs(high))
    if spread <= 1e-9 * size:  # all are equal up to rounding
        spread = size
    room = 0.05 * spread if spread > 1 / _MAX_ABS_VALUE else 0.5
    return Scale(0.0 if include_zero and low >= 0 else low - room, high + room)


def format_number(value: float) -> str:
    """Formats a number: integers and large values without decimals, others with four digits."""
    if math.isfinite(value) and (value == int(value) or abs(value) >= 1e4) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_percent(fraction: float) -> str:
    """Formats a fraction as a percentage with three digits."""
    return f"{100 * fraction:.3g} %"


def format_steps(steps: Sequence[float]) -> str:
    """Formats steps as `step 3` or `steps 3 to 9`."""
    first, last = format_number(min(steps)), format_number(max(steps))
    return f"step {first}" if first == last else f"steps {first} to {last}"


def format_coordinate(value: float) -> str:
    """Formats a coordinate with one decimal."""
    return f"{round(value, 1) + 0.0:g}"  # + 0.0 turns -0 into 0


def escape_html(value: object) -> str:
    """Escapes text for HTML; replaces control characters and lone surrogates."""
    plain = "".join(
        c
        if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f")
        else "\N{REPLACEMENT CHARACTER}"
        for c in str(value)
    )
    return html.escape(plain.encode("utf-8", "replace").decode("utf-8"))


def hover_band(left: float, width: float, lines: Sequence[str]) -> str:
    """A vertical band of a chart with `lines` as its tooltip, SVG."""
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
    """A chart with title, axes and legend, HTML.

    Args:
        title: the title.
        drawing: SVG in a box of 1000 x 1000, stretched to the frame.
        aria_label: text description for screen readers.
        overlay: HTML above the drawing, positioned in percent.
        hover_bands: results of `hover_band`.
        unit: unit of y.
        legend: (CSS class, label) of each curve.
        y_ticks: (distance from the top in percent, text) along the y axis.
        x_ticks: (distance from the left in percent, text) along the x axis.
        x_label: label of the x axis.
        note: a line below the chart.
        css_class: CSS classes.
        height: height of the drawing, in rem.
        footer: HTML below the axis.
    """
    labels = "".join(f'<li class="{css}">{escape_html(label)}</li>' for css, label in legend)
    stretched = 'viewBox="0 0 1000 1000" preserveAspectRatio="none"'
    stride = math.ceil(len(x_ticks) / _MAX_X_LABELS) or 1
    return "".join(
        (
            f'<figure class="chart {css_class}"><figcaption><h3>{escape_html(title)}</h3>',
            f"<small>{escape_html(unit)}</small>" if unit else "",
            f"<ul>{labels}</ul>" if labels else "",
            f'</figcaption><div class="plot" style="height:{format_coordinate(height)}rem">',
            f'<svg {stretched} role="img" aria-label="{escape_html(aria_label)}">{drawing}</svg>',
            overlay,
            f'<svg class="bands" {stretched} aria-hidden="true">{hover_bands}</svg>'
            if hover_bands
            else "",
            *(
                f'<b class="y" style="top:{format_coordinate(y)}%">{escape_html(text)}</b>'
                for y, text in y_ticks
            ),
            *(
                f'<b class="x" style="left:{format_coordinate(x)}%">{escape_html(text)}</b>'
                for x, text in x_ticks[::stride]
            ),
            f'</div><p class="axis">{escape_html(x_label)}</p>{footer}',
            f'<p class="note">{escape_html(note)}</p>' if note else "",
            "</figure>\n",
        )
    )
