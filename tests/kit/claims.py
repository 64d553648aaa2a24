"""Numbers of pages: those of a text, and the values of files of benchmarks/results behind them."""

import json
import re
from dataclasses import dataclass

from tests.kit import ROOT
from tests.kit.measured import RESULTS

# Code, targets of links, file names and addresses have no measured numbers.
_NO_PROSE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|^    [^\n]*$|https?://\S+", re.DOTALL | re.M)
_NUMBER = re.compile(
    r"(?<![\w.,+/-])[-+]?(?P<digits>\d[\d,]*(?:\.\d+)?)(?![\w]*[a-zA-Z]{3})\s?"
    r"(?P<unit>%|x\b|M\b|GB\b|MB\b|kB\b|ms\b|million\b|times\b)?"
)


@dataclass(frozen=True)
class Claim:
    """A number of a text.

    Args:
        text: as it is written.
        value: its value, without a sign.
        decimals: number of its decimals.
        unit: what follows it.
    """

    text: str
    value: float
    decimals: int
    unit: str


def sections(document):
    """Texts of a page by heading; the part before the first heading is ''."""
    parts = re.split(r"^#+ (.+)$", (ROOT / document).read_text(encoding="utf-8"), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def claims(text):
    """All numbers of a text that are no code and no part of a name."""
    for match in _NUMBER.finditer(_NO_PROSE.sub(" ", text)):
        digits = match["digits"].rstrip(",").replace(",", "")
        yield Claim(
            match[0].strip(), float(digits), len(digits.partition(".")[2]), match["unit"] or ""
        )


def numbers(value):
    """All numbers of a JSON value, and those in its texts."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, str):
        yield from (float(x) for x in re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def values_of(names):
    """All numbers of files of benchmarks/results."""
    texts = [(RESULTS / f"{name}.json").read_text(encoding="utf-8") for name in names]
    return [number for text in texts for number in numbers(json.loads(text))]


def _shown_as(value, unit):
    """Numbers that a value may be shown as before a unit."""
    if unit == "%":
        return value, 100 * value, 100 * (value - 1), 100 * (1 - value)
    if unit in ("M", "million"):
        return value / 1e6, value
    if unit in ("MB", "GB", "kB"):
        return value, value / 1e3, value / 1e6, value / 1e9
    if unit in ("x", "times"):
        return (value, 1 / value) if value else (value,)
    return (value,)


def is_backed(claim, values):
    """True if one of the values is shown as this number, rounded to its decimals."""
    half = 0.5 * 10.0**-claim.decimals * (1 + 1e-9)
    return any(
        abs(abs(shown) - claim.value) <= half
        for value in values
        for shown in _shown_as(value, claim.unit)
    )
