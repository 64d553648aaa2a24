"""HTML summary of a pipeline, which notebooks show: task, model, classes, metrics of its card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from miniformer.utils.page import key_value_table

_MAX_CLASSES = 10
_METRICS_TABLE = re.compile(r"^## Metrics\n\n\| metric .*\n\|---.*\n((?:\|.*\n)+)", re.MULTILINE)
_METRIC_SPLITS = ("validation", "test")


def render_summary(pipeline: Any) -> str:
    """HTML table of a `Pipeline`; without metrics if its directory has no model card."""
    model, task = pipeline.model, pipeline.task
    config = model.config
    size = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "task": task.name.replace("_", " "),
        "model": f"{type(model).__name__}: {size:,} parameters, {config.n_layers} layers x "
        f"{config.d_model}, context {config.max_seq_len:,}",
    }
    if pipeline.tokenizer is not None:
        rows["tokenizer"] = f"{pipeline.tokenizer.vocab_size:,} ids"
    if classes := getattr(task, "classes", None):
        more = f" and {len(classes) - _MAX_CLASSES:,} more" * (len(classes) > _MAX_CLASSES)
        rows["classes"] = f"{len(classes)}: {', '.join(map(str, classes[:_MAX_CLASSES]))}{more}"
    if pipeline.directory is not None:
        rows |= {"directory": str(pipeline.directory), **read_card_metrics(pipeline.directory)}
    return key_value_table(rows)


def read_card_metrics(directory: Path) -> dict[str, str]:
    """Metrics of validation and test in the model card of a run; {} without them."""
    try:
        card = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    table = _METRICS_TABLE.search(card)
    cells = [line.strip("| ").split(" | ") for line in table[1].splitlines()] if table else []
    return {row[0]: row[1] for row in cells if len(row) == 2 and row[0].startswith(_METRIC_SPLITS)}
