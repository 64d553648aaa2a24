"""The report of a run: one HTML page that stands alone, for whoever trained the model.

It loads nothing and runs no script: charts are SVG, pictures are part of the page, and a policy in
its head forbids the rest.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer.training.report.chart_parts import percent, text, told
from miniformer.training.report.charts import SHADES
from miniformer.training.report.curves import curves, points_of, words_of
from miniformer.utils.atomic import write_text

_SAMPLES = 60  # texts shown, at most
_LETTERS = 1500  # of a text shown, at most
# Viridis, roughly: as light as it is large, in every kind of colour vision.
_SHADES = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58",
           "b5de2b", "fde725")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
    """What there is to tell of a run.

    Args:
        title: the run's name.
        task: the task's.
        unit: of the loss.
        rows: lines of `metrics.jsonl`: `step`, and any of `tokens`, `padding` (share), `seconds`,
            `train_loss`, `lr`, `grad_norm`, `waiting` (share), `memory_mb`, `tokens_per_second`,
            `mfu` (share of the machine's measured peak), `val_loss` and other `val_` figures.
        gradients: `step`, and norms by layer, as `GradientNorms` measures them.
        samples: `step`, `prompt` and `text`, written at validations.
        figures: of the model to use.
        settings: fields of the run's config that are not at their defaults.
        facts: about model, data and machine.
        pictures: PNG files to show; missing ones are left out.
        notes: what one must know, such as an early end.
    """

    title: str
    task: str
    unit: str
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    gradients: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    pictures: list[Path] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def write_report(path: Path, report: Report) -> None:
    """Writes the page, beside its place first, so that it is never half written.

    Args:
        path: the file, .html.
        report: what it tells.
    """
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    style = style.replace("SCALE", ",".join(f"#{shade}" for shade in _SHADES)) + _shades()
    title, charts = text(report.title), curves(report.rows, report.gradients, report.unit)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}: report</title>
<style>
{style}
</style>
</head>
<body><main>
<header>
<p class="eyebrow">{text(report.task.replace("_", " "))}</p>
<h1>{title}</h1>
{"".join(f'<p class="warning">{text(note)}</p>' for note in report.notes)}
</header>
{_tiles(report)}
{_section("Curves", charts and f'<div class="charts">{charts}</div>')}
{_section("Samples", _samples(report.samples))}
{_section("Pictures", "".join(_picture(each) for each in report.pictures))}
<div class="pairs">
{_section("Settings changed from their defaults", _pairs(report.settings))}
{_section("Model, data and machine", _pairs(report.facts))}
</div>
{charts and "<footer>Point at a curve to read its figures.</footer>"}
</main></body>
</html>
"""
    write_text(path, page)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>" if body else ""


def _tiles(report: Report) -> str:
    """The key figures: those of the model, and how fast it was trained."""
    tiles = []
    for name, value in report.figures.items():
        unit = report.unit if name.endswith("loss") else ""
        if name == "seconds":
            tiles.append(("time", _duration(value), unit, f"{value} s"))
        else:
            tiles.append((words_of(name), _short(value), unit, str(value)))
    for key, name, small, pick, show in (
        ("tokens_per_second", "tokens per second", "median", statistics.median, _short),
        ("mfu", "use of the machine", "of its measured peak, median", statistics.median, percent),
        ("memory_mb", "memory", "MB, at most", max, _short),
    ):
        if values := [y for _, y in points_of(report.rows, key) if math.isfinite(y)]:
            picked = float(pick(values))
            tiles.append((name, show(picked), small, str(picked)))
    inner = "".join(
        f'<div title="{text(exact)}"><dt>{text(name)}</dt><dd>{text(value)}'
        f"<small>{text(unit)}</small></dd></div>\n"
        for name, value, unit, exact in tiles
    )
    columns = min((6, 5, 4), key=lambda many: -len(tiles) % many)  # fewest empty places
    return f'<dl class="tiles" style="--columns:{columns}">{inner}</dl>' if inner else ""


def _samples(samples: Sequence[dict[str, Any]]) -> str:
    """A table of texts, oldest first; of many, some evenly spread, with the first and the last."""
    if not samples:
        return ""
    count = min(len(samples), _SAMPLES)
    chosen = [samples[round(i * (len(samples) - 1) / max(1, count - 1))] for i in range(count)]
    lines = []
    for sample in chosen:
        written = str(sample.get("text", ""))
        more = len(written) - _LETTERS
        cut = f"<small> … and {more:,} characters</small>" if more > 0 else ""
        lines.append(
            f"<tr><th>{_value(sample.get('step', ''))}</th>"
            f'<td class="whole"><b>{text(sample.get("prompt", ""))}</b>'
            f"{text(written[:_LETTERS])}{cut}</td></tr>\n"
        )
    left = f'<p class="note">{count} of {len(samples)} samples</p>' if count < len(samples) else ""
    head = "<tr><th>step</th><th><b>prompt</b> and what follows</th></tr>"
    return f'<div class="table"><table>{head}{"".join(lines)}</table></div>{left}'


def _pairs(values: dict[str, Any]) -> str:
    """A table of names and values."""
    lines = (
        f"<tr><th>{text(name)}</th><td>{_value(value)}</td></tr>\n"
        for name, value in values.items()
    )
    return f'<div class="table"><table>{"".join(lines)}</table></div>' if values else ""


def _value(value: object) -> str:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return text(f"{value:,}")
    return text(json.dumps(value, ensure_ascii=False, default=str))


def _picture(path: Path) -> str:
    """A PNG file as part of the page."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    name = text(path.stem.replace("_", " "))
    return f'<figure class="picture"><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def _short(value: float) -> str:
    """A figure in a tile: `12.35 M` for 12,345,678."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e7, "M")):
        if math.isfinite(value) and abs(value) >= size:
            return f"{value / (1e6 if letter == 'M' else size):.4g} {letter}"
    return told(value)


def _duration(seconds: float) -> str:
    """A time: `1 h 5 min`, `3 min 20 s`, `12.3 s`."""
    if not math.isfinite(seconds) or seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _shades() -> str:
    """Colours of a heat map: classes h0, h1, ..., from low to high."""
    anchors = [[int(shade[i : i + 2], 16) for i in (0, 2, 4)] for shade in _SHADES]
    rules = []
    for i in range(SHADES):
        first, part = divmod(i * (len(anchors) - 1) / (SHADES - 1), 1)
        pair = zip(anchors[int(first)], anchors[min(int(first) + 1, len(anchors) - 1)], strict=True)
        rgb = " ".join(str(round(a + part * (b - a))) for a, b in pair)
        rules.append(f".h{i}{{fill:rgb({rgb})}}")
    return "".join(rules)
