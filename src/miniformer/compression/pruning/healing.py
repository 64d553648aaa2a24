"""Healing: a pruned model is trained by distillation from the model that it was made of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.data.reading.records import as_records
from miniformer.tasks.embedding import EmbeddingTask

if TYPE_CHECKING:
    from rich.console import Console


def healed_model(
    pruned: Pipeline,
    teacher: Pipeline,
    data: Any,
    steps: int | None = None,
    *,
    has_zeros: bool = False,
    console: Console | None = None,
) -> Any:
    """A copy of a pruned model that is trained on the task's loss and on the teacher's outputs.

    Args:
        pruned: the model with its task; it is not changed.
        teacher: the model that it was made of; it is not changed.
        data: labeled records.
        steps: optimizer steps; None: one pass over the records.
        has_zeros: zeros of linear layers stay zero.
        console: output for messages; None: it prints nothing.

    Raises:
        UserError: a record is of another task, or the task has no labels.
    """
    from miniformer.training.api import train

    if isinstance(pruned.task, EmbeddingTask):
        raise UserError("heal: a model for embedding has no labels; leave heal out")
    records = as_records(data, pruned.task.schema, mapping=pruned.data_settings.mapping())
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "teacher"
        teacher.save(directory)
        result = train(
            records,
            in_memory=True,
            start=pruned,
            console=console,
            loss_terms=[{"type": "distillation", "teacher": str(directory)}],
            callbacks=["weight_masks"] if has_zeros else [],
            **({"max_epochs": 1} if steps is None else {"max_steps": steps}),
        )
    return result.pipeline.model
