"""The model card, README.md of a model directory: what the model is and how it is used."""

from __future__ import annotations

from typing import Any

from miniformer.config import TransformerConfig
from miniformer.tasks.base import Task


def card_opening(
    config: TransformerConfig, *, name: str, model_kind: str, task: Task, tokenizer: str | None
) -> list[str]:
    """Lines of the front matter, heading, description and use.

    Args:
        config: the config of the model.
        name: heading.
        model_kind: encoder or seq2seq.
        task: the task of the model.
        tokenizer: a one-line description of the tokenizer; None: no tokenizer.
    """
    architecture = "A causal Transformer" if config.causal else "A Transformer encoder"
    layers = f"{config.n_layers}"
    if model_kind == "seq2seq":
        architecture = "An encoder-decoder Transformer"
        layers = f"{config.n_layers} + {config.decoder_layers}"
    size = config.num_params(seq2seq=model_kind == "seq2seq")
    shape = (
        f"{layers} layers x {config.d_model}, {config.n_heads} heads, "
        f"{config.activation}, {config.norm}, {config.position} positions, "
        f"context {config.max_seq_len}"
    )
    return [
        "---",
        "library_name: miniformer",
        "---",
        f"# {name}",
        "",
        f"{architecture} for {task.name.replace('_', ' ')}, {size:,} parameters: {shape}.",
        *([f"Tokenizer: {tokenizer}."] if tokenizer else []),
        "",
        "## Usage",
        "",
        "```python",
        "import miniformer",
        "",
        'm = miniformer.load("path/to/this/directory")',
        task.usage_snippet(),
        "```",
        "",
    ]


def render_default_card(pipeline: Any) -> str:
    """The card of a `Pipeline` that comes from no directory with a card."""
    task, tokenizer = pipeline.task, pipeline.tokenizer
    is_seq2seq = hasattr(pipeline.model, "decoder")
    opening = card_opening(
        pipeline.model.config,
        name=f"Model for {task.name.replace('_', ' ')}",
        model_kind="seq2seq" if is_seq2seq else "encoder",
        task=task,
        tokenizer=None if tokenizer is None else f"{tokenizer.vocab_size:,} ids",
    )
    notes = [
        "Training data, metrics and license are not stated; add them before you publish the model.",
        "",
    ]
    return "\n".join([*opening, *notes])
