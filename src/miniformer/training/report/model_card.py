"""The model card: README.md of a model directory."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from typing import Any

import torch

import miniformer
from miniformer.checkpoint.card import card_opening
from miniformer.config import TransformerConfig
from miniformer.tasks.base import Task
from miniformer.utils.formats import format_number, metric_label


def render_model_card(
    model_config: TransformerConfig,
    metrics: dict[str, float],
    *,
    name: str,
    settings: dict[str, Any],
    model_kind: str,
    task: Task,
    tokenizer: str | None,
    task_report: str = "",
    plots: Sequence[str] = (),
) -> str:
    """Renders the model card.

    Args:
        model_config: the config of the model.
        metrics: name -> value.
        name: name of the run.
        settings: settings of the run that differ from their defaults.
        model_kind: encoder or seq2seq.
        task: the task of the run.
        tokenizer: a one-line description of the tokenizer; None: no tokenizer.
        task_report: the task's report, Markdown.
        plots: file names of the plots in the model directory.
    """
    opening = card_opening(
        model_config, name=name, model_kind=model_kind, task=task, tokenizer=tokenizer
    )
    lines = [
        *opening,
        "## Metrics",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {metric_label(name)} | {format_number(value)} |" for name, value in metrics.items()),
        "",
        *([task_report, ""] if task_report else []),
        *(f"![{name.partition('.')[0]}]({name})\n" for name in plots),
        "## Training",
        "",
        "```json",
        json.dumps(settings, indent=2),
        "```",
        "",
        f"Miniformer {miniformer.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}.",
        "",
    ]
    return "\n".join(lines)
