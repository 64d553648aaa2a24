"""Numbers and text of the report, for people and for HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence


def metric_label(name: str) -> str:
    """Label of a metric: `val_macro_f1` -> `validation macro f1`."""
    return name.replace("val_", "validation ").replace("_", " ")


def format_number(value: float) -> str:
    """Formats a number: integers and large values without decimals, others with four digits."""
    if math.isfinite(value) and (value == int(value) or abs(value) >= 1e4) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_compact(value: float) -> str:
    """Formats a number for a tile: `12.35 M` for 12,345,678."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e7, "M")):
        if math.isfinite(value) and abs(value) >= size:
            return f"{value / (1e6 if letter == 'M' else size):.4g} {letter}"
    return format_number(value)


def format_percent(fraction: float) -> str:
    """Formats a fraction as a percentage with three digits."""
    return f"{100 * fraction:.3g} %"


def format_duration(seconds: float) -> str:
    """Formats a duration: `1 h 5 min`, `3 min 20 s`, `12.3 s`."""
    if not math.isfinite(seconds) or seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def format_steps(steps: Sequence[float]) -> str:
    """Formats steps as `step 3` or `steps 3 to 9`."""
    first, last = format_number(min(steps)), format_number(max(steps))
    return f"step {first}" if first == last else f"steps {first} to {last}"


def clean_text(value: object) -> str:
    """Replaces control characters and lone surrogates, which XML does not allow."""
    plain = "".join(
        c
        if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f")
        else "\N{REPLACEMENT CHARACTER}"
        for c in str(value)
    )
    return plain.encode("utf-8", "replace").decode("utf-8")


def escape_html(value: object) -> str:
    """Escapes text for HTML; replaces control characters and lone surrogates."""
    return html.escape(clean_text(value))
