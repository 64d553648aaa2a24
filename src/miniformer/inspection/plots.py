"""Plots of an inspection, one function each. A `Plot` shows itself in a notebook."""

from __future__ import annotations

from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.inspection.text import layer_names, show_token
from miniformer.utils.plotting import Plot

_MAX_TICKS = 40  # with more tokens, axes have numbers
_COLUMNS = 4  # heads in a row


def plot_attention(
    inspection: Any,
    *,
    layer: int = -1,
    head: int | None = None,
    stack: str | None = None,
) -> Plot:
    """Attention weights of a layer: queries downward, keys to the right.

    Args:
        inspection: from `Pipeline.inspect`.
        layer: index of the layer; -1: the last one.
        head: index of the head; None: all heads, a map each.
        stack: encoder, decoder or cross; None: cross of seq2seq, else the only stack.

    Raises:
        UserError: there is no such stack, layer or head.
    """
    stacks = inspection.attentions
    stack = next(reversed(stacks)) if stack is None else stack
    if stack not in stacks:
        raise UserError(f"stack must be {' or '.join(stacks)}, not {stack!r}")
    weights = _select(stacks[stack], layer, "layer")
    heads = list(range(len(weights))) if head is None else [head]
    maps = [_select(weights, index, "head").numpy() for index in heads]
    queries, keys = inspection.stack_tokens(stack)
    columns = min(_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    side = min(8.0, max(2.6, 0.22 * max(len(queries), len(keys)) + 1.0)) if head is None else 6.0

    def draw(figure: Any) -> None:
        for number, (index, weights) in enumerate(zip(heads, maps, strict=True)):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"head {index}", fontsize=9)
            _name_ticks(axes, "x", keys)
            _name_ticks(axes, "y", queries if number % columns == 0 else [])

    return Plot(draw, columns * side, rows * side, salt=f"attention {stack} {layer}")


def plot_hidden_states(inspection: Any, *, stack: str | None = None) -> Plot:
    """Euclidean norm of each hidden state: layers downward, positions to the right.

    Args:
        inspection: from `Pipeline.inspect`.
        stack: encoder or decoder; None: the one that the head reads.

    Raises:
        UserError: there is no such stack.
    """
    stack = inspection.stack if stack is None else stack
    if stack not in inspection.hidden_states:
        known = " or ".join(inspection.hidden_states)
        raise UserError(f"stack must be {known}, not {stack!r}")
    norms = np.stack([x.norm(dim=-1).numpy() for x in inspection.hidden_states[stack]])
    names = inspection.stack_tokens(stack)[0]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(norms, cmap="viridis", aspect="auto")
        figure.colorbar(image, ax=axes, label="norm")
        _name_ticks(axes, "x", names)
        axes.set_yticks(range(len(norms)), layer_names(len(norms)), fontsize=8)
        axes.grid(visible=False)

    width, height = _map_size(len(names), len(norms))
    return Plot(draw, width + 1.0, height, salt=f"hidden {stack}")


def plot_lens(inspection: Any) -> Plot:
    """The most probable output of each row by layer, shaded by its probability.

    Raises:
        UserError: the model has no head.
    """
    if not inspection.lens:
        raise UserError(f"a model for {inspection.task} has no head, so it has no logit lens")
    best = [[row[0] for row in layer] for layer in inspection.lens]
    values = np.array([[x.value for x in layer] for layer in best])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(values.shape):
            color = "white" if values[row, column] > 0.6 else "black"
            text = show_token(best[row][column].name, 10)
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
        _name_ticks(axes, "x", inspection.rows)
        axes.set_yticks(range(len(values)), layer_names(len(values)), fontsize=8)
        axes.grid(visible=False)

    return Plot(draw, *_map_size(len(inspection.rows), len(values), 0.75), salt="lens")


def plot_logprobs(inspection: Any) -> Plot:
    """Log-probability of each token in nats, as bars.

    Raises:
        UserError: the task has no log-probabilities of tokens.
    """
    values = [0.0 if value is None else value for value in inspection.logprobs]
    if all(value is None for value in inspection.logprobs):
        raise UserError(f"a model for {inspection.task} has no log-probabilities of tokens")

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.bar(range(len(values)), values)
        _name_ticks(axes, "x", inspection.tokens)
        axes.set(ylabel="log-probability, nats")
        axes.grid(visible=False, axis="x")

    return Plot(draw, _map_size(len(values), 0)[0], 2.6, salt="logprobs")


def _select(items: Any, index: int, name: str) -> Any:
    if not -len(items) <= index < len(items):
        raise UserError(f"{name} must be 0 to {len(items) - 1}, not {index}")
    return items[index]


def _map_size(columns: int, rows: int, cell: float = 0.35) -> tuple[float, float]:
    """Width and height in inches of a map with names of columns below."""
    return min(20.0, max(4.0, 1.0 + cell * columns)), min(12.0, 1.2 + 0.3 * rows)


def _name_ticks(axes: Any, axis: str, names: list[str]) -> None:
    """Names of the positions on an axis; numbers, if there are many."""
    set_ticks = axes.set_xticks if axis == "x" else axes.set_yticks
    axes.grid(visible=False)
    if len(names) > _MAX_TICKS:
        return
    labels = [show_token(name, 12) for name in names]
    rotation = {"rotation": 90} if axis == "x" else {}
    set_ticks(range(len(names)), labels, fontsize=7, **rotation)
