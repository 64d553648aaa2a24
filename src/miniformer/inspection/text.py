"""Terminal form of an inspection: tokens with their lens, and the strongest attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

WIDE_HEAD_NOTE = "without the wide head, which the predictions of the model have in addition"
_MAX_LAYERS = 5  # columns of the lens
_MAX_ROWS = 40
_MAX_CELL = 14  # characters
_NUM_STRONGEST = 3


def show_token(name: str, width: int | None = None) -> str:
    """A token on one line, its spaces visible; cut to a width."""
    text = name.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def layer_names(count: int) -> list[str]:
    """Names of hidden states: the inputs of the layers, numbered from 0, and of the head."""
    return [f"in {n}" for n in range(count - 1)] + ["head"]


def shown_layers(count: int, limit: int = _MAX_LAYERS) -> list[int]:
    """At most `limit` evenly spaced indices of `count`, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(n * (count - 1) / (limit - 1)) for n in range(limit)]


def strongest(weights: Tensor, names: list[str]) -> str:
    """The keys with the largest mean weight over heads and queries; weights: [H, T, S]."""
    means = weights.mean((0, 1))
    values, best = means.topk(min(_NUM_STRONGEST, len(names)))
    pairs = zip(best.tolist(), values.tolist(), strict=True)
    return ", ".join(
        f"{show_token(names[n], _MAX_CELL)} at {n} ({value:.2f})" for n, value in pairs
    )


def render_text(inspection: Any) -> str:
    """Lines for a terminal: a table of tokens, the lens, and the strongest attention."""
    lines = [
        f"{inspection.task}: {len(inspection.tokens)} positions; " + ", ".join(
            f"{name} of {len(layers)} layers x {layers[0].shape[0]} heads"
            for name, layers in inspection.attentions.items()
            if layers
        )
    ]  # fmt: skip
    lines += ["", *_table(inspection)] if inspection.lens else []
    lines += [WIDE_HEAD_NOTE] if inspection.has_wide_head else []
    lines += ["", "attention, mean of heads and positions:"]
    for name, layers in inspection.attentions.items():
        keys = inspection.stack_tokens(name)[1]
        lines += [
            f"  {name} layer {number}: {strongest(layers[number], keys)}"
            for number in shown_layers(len(layers))
        ]
    return "\n".join(lines)


def _table(inspection: Any) -> list[str]:
    """The table of the lens: a line for each row of outputs."""
    layers = shown_layers(len(inspection.lens))
    names = layer_names(len(inspection.lens))
    by_token = any(value is not None for value in inspection.logprobs)
    header = ["", "token" if by_token else "row", *(["log-prob"] if by_token else [])]
    rows = [[*header, *(names[layer] for layer in layers)]]
    for number, name in enumerate(inspection.rows[:_MAX_ROWS]):
        row = [str(number), show_token(name, _MAX_CELL)]
        if by_token:
            value = inspection.logprobs[number]
            row.append("" if value is None else f"{value:.2f}")
        for layer in layers:
            best = inspection.lens[layer][number][0]
            row.append(f"{show_token(best.name, _MAX_CELL)} {best.value:.2f}")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    left_out = len(inspection.rows) - _MAX_ROWS
    return [*lines, f"{left_out} more rows"] if left_out > 0 else lines
