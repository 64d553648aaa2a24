"""Drawing of a model from its config: its stack of blocks with the chosen parts, as SVG."""

from __future__ import annotations

from typing import NamedTuple

from miniformer.config import TransformerConfig
from miniformer.utils.formats import escape_html

_WIDTH, _HEIGHT, _GAP = 250, 34, 16  # of a box, in pixels
_SIDE = 44  # space on each side of the boxes, for residual lines
_COLORS = {
    "input": "#f1f3f5",
    "norm": "#fff3bf",
    "attention": "#d0ebff",
    "feed_forward": "#d3f9d8",
    "head": "#ffe3e3",
    "add": "#ffffff",
}


class Box(NamedTuple):
    """A part in the drawing.

    Attributes:
        kind: key of its color; `add` is the addition of a residual branch.
        text: name of the part.
        detail: second line; empty: none.
        starts_branch: the residual line to the next `add` begins before this box.
    """

    kind: str
    text: str
    detail: str = ""
    starts_branch: bool = False


def draw_model(config: TransformerConfig, *, seq2seq: bool = False) -> str:
    """Draws a model as an SVG document.

    Args:
        config: the config of the model.
        seq2seq: draw an encoder with a decoder.
    """
    if not seq2seq:
        columns = [_column(config, config.n_layers, head=True)]
    else:
        columns = [
            _column(config, config.n_layers, head=False, title="source"),
            _column(config, config.decoder_layers, head=True, title="target", cross=True),
        ]
    column_width = _WIDTH + 2 * _SIDE
    height = max(column.height for column in columns)
    width = column_width * len(columns)
    parts = [
        f'<g transform="translate({n * column_width} 0)">{column.svg}</g>'
        for n, column in enumerate(columns)
    ]
    if seq2seq:
        parts.append(_memory_line(columns, column_width))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#495057"/></marker>'
        "</defs>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n{"".join(parts)}</svg>\n'
    )


def layer_boxes(config: TransformerConfig, *, cross: bool = False) -> list[Box]:
    """The boxes of a layer, from its input to its output.

    Args:
        config: the config of the model.
        cross: with attention to the source, as in a decoder.
    """
    placement = config.effective_norm_placement
    attention = Box(
        "attention", "self-attention", attention_detail(config, causal=config.causal or cross)
    )
    feed_forward = Box("feed_forward", "feed-forward", f"{config.activation}, {config.ff_width:,}")
    norm = Box("norm", config.norm)
    if config.parallel_residual:
        both = Box(
            "attention", "self-attention + feed-forward", f"side by side, {config.activation}"
        )
        return [norm._replace(starts_branch=True), both, Box("add", "+")]
    branches = [attention, feed_forward]
    if cross:
        branches.insert(1, Box("attention", "attention to the source", f"{config.n_heads} heads"))
    boxes = []
    for branch in branches:
        before = [norm] if placement in ("pre", "both") else []
        after = [norm] if placement in ("both", "output") else []
        sequence = [*before, branch, *after]
        boxes += [sequence[0]._replace(starts_branch=True), *sequence[1:], Box("add", "+")]
        boxes += [norm] if placement == "post" else []
    return boxes


def attention_detail(config: TransformerConfig, *, causal: bool) -> str:
    """Heads, position and other choices of attention, in one line."""
    heads = f"{config.n_heads} heads"
    if config.kv_heads != config.n_heads:
        heads += f", {config.kv_heads} of keys and values"
    names = {"rotary": "rotary", "alibi": "ALiBi", "t5_relative": "T5 bias"}
    choices = [heads, "causal" if causal else "", names.get(config.position, "")]
    if config.sliding_window is not None:
        choices.append(f"window {config.sliding_window:,}")
    choices.append("norm of q, k" if config.qk_norm else "")
    return ", ".join(choice for choice in choices if choice)


class _Column(NamedTuple):
    svg: str
    height: int
    middles: dict[str, int]  # text of a box -> y of its middle


def _column(
    config: TransformerConfig, layers: int, *, head: bool, title: str = "", cross: bool = False
) -> _Column:
    """A stack from its inputs, at the top, to its outputs."""
    inputs = f"vectors of {config.input_dim}" if config.input_dim and not cross else "token ids"
    position = config.position if config.position in ("learned", "sinusoidal") else ""
    embedding = f"width {config.d_model}" + (f", + {position} positions" if position else "")
    before = [Box("input", f"{title} {inputs}".strip()), Box("input", "embedding", embedding)]
    before += [Box("norm", config.norm)] if config.embedding_norm else []
    after = [Box("norm", config.norm)] if config.effective_norm_placement != "post" else []
    if head:
        outputs = config.output_dim or config.vocab_size
        pooled = f", {config.pooling} of the positions" if config.output_dim else ""
        after.append(Box("head", "head", f"{outputs:,} outputs{pooled}"))
    y, parts, middles = _GAP, [], {}
    layer = layer_boxes(config, cross=cross)
    top = branch = 0
    for number, box in enumerate([*before, *layer, *after]):
        if number == len(before):
            top = y - _GAP // 2
        if box.starts_branch:
            branch = y - _GAP // 2
        middles[box.text] = y + _HEIGHT // 2
        parts.append(_box(box, y, branch))
        y += _HEIGHT + _GAP
        if number == len(before) + len(layer) - 1:
            parts.insert(0, _frame(top, y - _GAP // 2, layers))
    return _Column("".join(parts), y, middles)


def _box(box: Box, y: int, branch: int) -> str:
    """A box with the arrow to it; of an addition, also the residual line from `branch`."""
    middle_x, middle_y = _SIDE + _WIDTH // 2, y + _HEIGHT // 2
    arrow = f'<path d="M{middle_x} {y - _GAP} V{y - 1}" stroke="#495057" marker-end="url(#arrow)"/>'
    if y == _GAP:
        arrow = ""
    if box.kind == "add":
        right = _SIDE + _WIDTH + 14
        return (
            f'{arrow}<path d="M{middle_x} {branch} H{right} V{middle_y} H{middle_x + 12}" '
            'fill="none" stroke="#868e96" marker-end="url(#arrow)"/>'
            f'<circle cx="{middle_x}" cy="{middle_y}" r="11" fill="#ffffff" stroke="#495057"/>'
            f'<text x="{middle_x}" y="{middle_y + 4}" text-anchor="middle">+</text>'
            f'<path d="M{middle_x} {middle_y + 11} V{y + _HEIGHT}" stroke="#495057"/>'
            f'<path d="M{middle_x} {y} V{middle_y - 11}" stroke="#495057"/>\n'
        )
    lines = [box.text, box.detail] if box.detail else [box.text]
    start = middle_y + 4 - 7 * (len(lines) - 1)
    texts = "".join(
        f'<text x="{middle_x}" y="{start + 14 * n}" text-anchor="middle"'
        f"{' fill=#495057 font-size=10.5' if n else ''}>{escape_html(line)}</text>".replace(
            "fill=#495057 font-size=10.5", 'fill="#495057" font-size="10.5"'
        )
        for n, line in enumerate(lines)
    )
    return (
        f'{arrow}<rect x="{_SIDE}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
        f'fill="{_COLORS[box.kind]}" stroke="#495057"/>{texts}\n'
    )


def _frame(top: int, bottom: int, layers: int) -> str:
    """The frame around a layer, with the number of layers."""
    return (
        f'<rect x="{_SIDE - 30}" y="{top}" width="{_WIDTH + 58}" height="{bottom - top}" rx="10" '
        'fill="#f8f9fa" stroke="#adb5bd" stroke-dasharray="5 4"/>'
        f'<text x="{_SIDE - 8}" y="{top + 18}" text-anchor="end">{layers} x</text>\n'
    )


def _memory_line(columns: list[_Column], column_width: int) -> str:
    """The line from the encoder's output to the attention to the source."""
    encoder, decoder = columns
    start, end = encoder.height - _GAP, decoder.middles["attention to the source"]
    x = column_width - 6
    return (
        f'<path d="M{_SIDE + _WIDTH // 2} {start} V{start + 8} H{x} V{end} '
        f'H{column_width + _SIDE - 2}" fill="none" stroke="#1c7ed6" stroke-width="1.5" '
        'marker-end="url(#arrow)"/>\n'
    )
