"""HTML of an inspection: tables, and plots as inline SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniformer.inspection import plots
from miniformer.inspection.text import WIDE_HEAD_NOTE, layer_names, show_token
from miniformer.utils.page import Cell, render_section, render_table, write_page
from miniformer.utils.plotting import Plot

_MAX_ROWS = 200


def render_body(inspection: Any) -> str:
    """Sections with the lens, log-probabilities and the attention of each stack's last layer."""
    parts = [render_section("Layers and their predictions", _lens_table(inspection))]
    if any(value is not None for value in inspection.logprobs):
        plot = plots.plot_logprobs(inspection)
        parts.append(render_section("Log-probabilities", _figure(plot)))
    for stack, layers in inspection.attentions.items():
        title = f"Attention: {stack}, layer {len(layers) - 1}"
        plot = plots.plot_attention(inspection, stack=stack)
        parts.append(render_section(title, _figure(plot)))
    plot = plots.plot_hidden_states(inspection)
    parts.append(render_section("Norms of hidden states", _figure(plot)))
    return "\n".join(parts)


def write_inspection(path: Path, inspection: Any, target: str) -> None:
    """Writes the page of an inspection; `target`: the model as the command line names it."""
    write_page(
        path,
        title=f"inspect: {target}",
        heading=target,
        eyebrow="miniformer inspect",
        body=render_body(inspection),
    )


def _figure(plot: Plot) -> str:
    svg = plot.to_svg()
    return f'<figure class="picture">{svg[svg.index("<svg") :]}</figure>'


def _lens_table(inspection: Any) -> str:
    """A row for each output, a column for each layer, shaded by probability."""
    if not inspection.lens:
        return ""
    rows = []
    for number, name in enumerate(inspection.rows[:_MAX_ROWS]):
        cells: list[object] = [number, Cell(show_token(name), "head")]
        for layer in inspection.lens:
            best = layer[number]
            tooltip = "\n".join(f"{show_token(p.name)} {p.value:.3f}" for p in best)
            shade = min(max(best[0].value, 0.0), 1.0)
            cells.append(Cell(show_token(best[0].name, 20), shade=shade, tooltip=tooltip))
        rows.append(cells)
    left_out = len(inspection.rows) - _MAX_ROWS
    note = "The most probable output of the head for the hidden states of each layer."
    note += f" {left_out} more rows are left out." if left_out > 0 else ""
    note += f" They are {WIDE_HEAD_NOTE}." if inspection.has_wide_head else ""
    return render_table(("", "", *layer_names(len(inspection.lens))), rows, note)
