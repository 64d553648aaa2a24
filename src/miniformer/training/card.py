"""The model card: README.md of a model directory."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence

import torch

import miniformer
from miniformer.config import TransformerConfig
from miniformer.tasks.task import Task
from miniformer.train_config import TrainConfig


def model_card(
    config: TransformerConfig,
    run: TrainConfig,
    figures: dict[str, float],
    *,
    kind: str,
    task: Task,
    tokenizer: str | None,
    more: str = "",
    pictures: Sequence[str] = (),
) -> str:
    """Text of the card.

    Args:
        config: the model.
        run: how it was trained.
        figures: what to tell of the run: name -> value.
        kind: encoder or seq2seq.
        task: what it was trained for.
        tokenizer: one line about the tokenizer; None: it has none.
        more: what the task says beside its figures, Markdown.
        pictures: names of the pictures that lie beside the card.
    """
    what = {"encoder": "A causal Transformer" if config.causal else "A Transformer encoder"}
    layers = f"{config.n_layers}"
    if kind == "seq2seq":
        layers = f"{config.n_layers} + {config.decoder_layers}"
    size = config.num_params(seq2seq=kind == "seq2seq")
    shape = (
        f"{layers} layers x {config.d_model}, {config.n_heads} heads, "
        f"{config.activation}, {config.norm}, {config.position} positions, "
        f"context {config.max_seq_len}"
    )
    parts = [
        "---",
        "library_name: miniformer",
        "---",
        f"# {run.experiment_name or run.task}",
        "",
        f"{what.get(kind, 'An encoder-decoder Transformer')} for {task.name.replace('_', ' ')}, "
        f"{size:,} parameters: {shape}.",
        *([f"Tokenizer: {tokenizer}."] if tokenizer else []),
        "",
        "## Use",
        "",
        "```python",
        "import miniformer",
        "",
        'm = miniformer.load("path/to/this/directory")',
        task.example(),
        "```",
        "",
        "## Figures",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {_name(name)} | {_round(value)} |" for name, value in figures.items()),
        "",
        *([more, ""] if more else []),
        *(f"![{name.partition('.')[0]}]({name})\n" for name in pictures),
        "## How it was trained",
        "",
        "```json",
        json.dumps(run.changed(), indent=2),
        "```",
        "",
        f"Miniformer {miniformer.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}.",
        "",
    ]
    return "\n".join(parts)


def _name(figure: str) -> str:
    return figure.replace("val_", "validation ").replace("_", " ")


def _round(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
