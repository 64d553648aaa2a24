"""The report of a run: one self-contained HTML page.

The page has no scripts and no external resources: charts are SVG, images are embedded, and a
content security policy forbids everything else.
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

from miniformer.training.report.curves import metric_points, render_curves
from miniformer.training.report.formats import (
    escape_html,
    format_compact,
    format_duration,
    format_percent,
    metric_label,
)
from miniformer.utils.atomic import write_text

_MAX_SAMPLES = 60  # further samples are omitted
_MAX_SAMPLE_CHARS = 1500  # longer samples are truncated


@dataclasses.dataclass(frozen=True)
class Report:
    """Contents of a report.

    Args:
        title: the name of the run.
        task: the name of the task.
        loss_unit: unit of the loss.
        metric_rows: rows of `metrics.jsonl`: `step`, and any of `tokens`, `padding` (fraction),
            `seconds`, `train_loss`, `lr`, `grad_norm`, `waiting` (fraction), `memory_mb`,
            `tokens_per_second`, `mfu` (fraction of the measured peak), `val_loss` and other
            `val_` metrics.
        gradient_rows: `step`, and gradient norms by layer from `GradientNorms`.
        samples: `step`, `prompt` and `text` of the samples at validations.
        metrics: metrics of the best model.
        changed_settings: config fields that differ from their defaults.
        environment: information about model, data and machine.
        plots: PNG files to embed; missing ones are omitted.
        warnings: messages at the top, such as an interruption.
    """

    title: str
    task: str
    loss_unit: str
    metric_rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    gradient_rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    changed_settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    plots: list[Path] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def write_report(path: Path, report: Report) -> None:
    """Writes the page atomically.

    Args:
        path: the HTML file.
        report: the contents.
    """
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    title = escape_html(report.title)
    charts = render_curves(report.metric_rows, report.gradient_rows, report.loss_unit)
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
<p class="eyebrow">{escape_html(report.task.replace("_", " "))}</p>
<h1>{title}</h1>
{"".join(f'<p class="warning">{escape_html(warning)}</p>' for warning in report.warnings)}
</header>
{_metric_tiles(report)}
{_render_section("Curves", charts and f'<div class="charts">{charts}</div>')}
{_render_section("Samples", _sample_table(report.samples))}
{_render_section("Plots", "".join(_embed_image(plot) for plot in report.plots))}
<div class="pairs">
{_render_section("Settings changed from their defaults", _key_value_table(report.changed_settings))}
{_render_section("Model, data and machine", _key_value_table(report.environment))}
</div>
{charts and "<footer>Hover over a curve to read its values.</footer>"}
</main></body>
</html>
"""
    write_text(path, page)


def _render_section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>" if body else ""


def _metric_tiles(report: Report) -> str:
    """Tiles with the metrics of the model and the throughput of training."""
    tiles = []
    for name, value in report.metrics.items():
        unit = report.loss_unit if name.endswith("loss") else ""
        if name == "seconds":
            tiles.append(("time", format_duration(value), unit, f"{value} s"))
        else:
            tiles.append((metric_label(name), format_compact(value), unit, str(value)))
    for key, name, unit, aggregate, format_value in (
        ("tokens_per_second", "tokens per second", "median", statistics.median, format_compact),
        ("mfu", "MFU", "of the measured peak, median", statistics.median, format_percent),
        ("memory_mb", "memory", "MB, peak", max, format_compact),
    ):
        if values := [y for _, y in metric_points(report.metric_rows, key) if math.isfinite(y)]:
            value = float(aggregate(values))
            tiles.append((name, format_value(value), unit, str(value)))
    inner = "".join(
        f'<div title="{escape_html(exact)}"><dt>{escape_html(name)}</dt><dd>{escape_html(value)}'
        f"<small>{escape_html(unit)}</small></dd></div>\n"
        for name, value, unit, exact in tiles
    )
    columns = min((6, 5, 4), key=lambda count: -len(tiles) % count)  # fewest empty cells
    return f'<dl class="tiles" style="--columns:{columns}">{inner}</dl>' if inner else ""


def _sample_table(samples: Sequence[dict[str, Any]]) -> str:
    """A table of samples, oldest first; of many, an evenly spaced selection."""
    if not samples:
        return ""
    count = min(len(samples), _MAX_SAMPLES)
    selected = [samples[round(i * (len(samples) - 1) / max(1, count - 1))] for i in range(count)]
    lines = []
    for sample in selected:
        text = str(sample.get("text", ""))
        num_cut = len(text) - _MAX_SAMPLE_CHARS
        suffix = f"<small> … and {num_cut:,} characters</small>" if num_cut > 0 else ""
        lines.append(
            f"<tr><th>{_format_cell(sample.get('step', ''))}</th>"
            f'<td class="whole"><b>{escape_html(sample.get("prompt", ""))}</b>'
            f"{escape_html(text[:_MAX_SAMPLE_CHARS])}{suffix}</td></tr>\n"
        )
    note = f'<p class="note">{count} of {len(samples)} samples</p>' if count < len(samples) else ""
    head = "<tr><th>step</th><th><b>prompt</b> and generated text</th></tr>"
    return f'<div class="table"><table>{head}{"".join(lines)}</table></div>{note}'


def _key_value_table(values: dict[str, Any]) -> str:
    """A table of names and values."""
    lines = (
        f"<tr><th>{escape_html(name)}</th><td>{_format_cell(value)}</td></tr>\n"
        for name, value in values.items()
    )
    return f'<div class="table"><table>{"".join(lines)}</table></div>' if values else ""


def _format_cell(value: object) -> str:
    if isinstance(value, str):
        return escape_html(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return escape_html(f"{value:,}")
    return escape_html(json.dumps(value, ensure_ascii=False, default=str))


def _embed_image(path: Path) -> str:
    """An embedded PNG file; empty if it is missing."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    name = escape_html(path.stem.replace("_", " "))
    return f'<figure class="picture"><img alt="{name}" src="data:image/png;base64,{data}"></figure>'
