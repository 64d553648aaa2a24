"""The report of a run: one self-contained HTML page, see `miniformer.utils.page`."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer.training.report.curves import (
    metric_points,
    render_curves,
    render_machine_curves,
)
from miniformer.utils.formats import (
    escape_html,
    format_compact,
    format_duration,
    format_percent,
    metric_label,
)
from miniformer.utils.page import (
    embed_image,
    format_cell,
    key_value_table,
    render_section,
    render_tiles,
    write_page,
)

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
        metric: the metric of the best model, without the prefix `val_`.
        verdicts: what to do next; empty: no problems found.
        sections: title and HTML of each section about the predictions of the best model.
        given_settings: settings that the user gave.
        changed_settings: other config fields that differ from their defaults, each with a reason.
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
    metric: str = "loss"
    verdicts: list[str] = dataclasses.field(default_factory=list)
    sections: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    given_settings: dict[str, Any] = dataclasses.field(default_factory=dict)
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
    charts = render_curves(
        report.metric_rows,
        report.loss_unit,
        metric=report.metric,
        best_step=report.metrics.get("step"),
    )
    machine = render_machine_curves(report.metric_rows, report.gradient_rows)
    body = f"""{render_section("What to do next", _verdict_list(report))}
{_metric_tiles(report)}
{"".join(render_section(title, html) for title, html in report.sections)}
{render_section("Curves", charts and f'<div class="charts">{charts}</div>')}
{render_section("Samples", _sample_table(report.samples))}
{render_section("Plots", "".join(embed_image(plot) for plot in report.plots))}
<div class="pairs">
{render_section("Settings given", key_value_table(report.given_settings))}
{render_section("Settings resolved", key_value_table(report.changed_settings))}
</div>
{render_section("Training", machine and f'<div class="charts">{machine}</div>')}
{render_section("Model, data and machine", key_value_table(report.environment))}"""
    write_page(
        path,
        title=f"{report.title}: report",
        heading=report.title,
        eyebrow=report.task.replace("_", " "),
        body=body,
        warnings=report.warnings,
        footer="Hover over a curve to read its values." if charts or machine else "",
    )


def _verdict_list(report: Report) -> str:
    """The verdicts; a run without validation or steps has none."""
    verdicts = report.verdicts
    if not verdicts and any("val_loss" in row for row in report.metric_rows):
        verdicts = ["No problems found in the curves and predictions of this run."]
    items = "".join(f"<li>{escape_html(verdict)}</li>" for verdict in verdicts)
    return f'<ul class="verdicts">{items}</ul>' if items else ""


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
    return render_tiles(tiles)


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
            f"<tr><th>{format_cell(sample.get('step', ''))}</th>"
            f'<td class="whole"><b>{escape_html(sample.get("prompt", ""))}</b>'
            f"{escape_html(text[:_MAX_SAMPLE_CHARS])}{suffix}</td></tr>\n"
        )
    note = f'<p class="note">{count} of {len(samples)} samples</p>' if count < len(samples) else ""
    head = "<tr><th>step</th><th><b>prompt</b> and generated text</th></tr>"
    return f'<div class="table"><table>{head}{"".join(lines)}</table></div>{note}'
