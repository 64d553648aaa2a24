"""The model card: README.md of a model directory."""

from __future__ import annotations

import json
import platform

import torch

import miniformer
from miniformer.config import TransformerConfig
from miniformer.train_config import TrainConfig


def model_card(
    config: TransformerConfig,
    run: TrainConfig,
    figures: dict[str, float],
    *,
    tokenizer: str,
    picture: bool,
) -> str:
    """Text of the card.

    Args:
        config: the model.
        run: how it was trained.
        figures: what to tell of the run: name -> value.
        tokenizer: one line about the tokenizer.
        picture: whether loss.png lies beside the card.
    """
    shape = (
        f"{config.n_layers} layers x {config.d_model}, {config.n_heads} heads, "
        f"{config.activation}, {config.norm}, {config.position} positions, "
        f"context {config.max_seq_len}"
    )
    return "\n".join(
        [
            "---",
            "library_name: miniformer",
            "---",
            f"# {run.experiment_name or run.task}",
            "",
            f"A causal Transformer language model of {config.num_params():,} parameters: {shape}.",
            f"Tokenizer: {tokenizer}.",
            "",
            "## Use",
            "",
            "```python",
            "import miniformer",
            "",
            'm = miniformer.load("path/to/this/directory")',
            'print(m.generate("...", max_new_tokens=64, temperature=0.8))',
            "```",
            "",
            "## Figures",
            "",
            "| figure | value |",
            "|---|---|",
            *(
                f"| {name.replace('val_', 'validation ').replace('_', ' ')} | {_round(value)} |"
                for name, value in figures.items()
            ),
            "",
            *(["![loss](loss.png)", ""] if picture else []),
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
    )


def _round(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
