"""Healing: a pruned model is trained by distillation from the model that it was made of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.data.reading.records import Records, as_records
from miniformer.tasks.embedding import EmbeddingTask

if TYPE_CHECKING:
    from rich.console import Console

_TRAIN = "miniformer train FILE --init_from OUT --lr 1e-5"
_TRAIN_ZEROS = """miniformer train FILE --init_from OUT --lr 1e-5 --callbacks '["weight_masks"]'"""


def healing_records(pipeline: Pipeline, data: Any) -> Records:
    """Labeled records on which a model is trained.

    Args:
        pipeline: the model with its task.
        data: files or records in memory.

    Raises:
        UserError: a record is of another task, or the task has no labels.
    """
    if isinstance(pipeline.task, EmbeddingTask):
        raise UserError("heal: a model for embedding has no labels; leave heal out")
    try:
        mapping = pipeline.data_settings.mapping()
        records = as_records(data, pipeline.task.schema, mapping=mapping)
        records[0]  # reports another task before parts or weights are chosen
        return records
    except UserError as error:
        raise UserError(f"heal: {error} (task {pipeline.task.name})") from None


def healed_model(
    pruned: Pipeline,
    teacher: Pipeline,
    records: Records,
    steps: int | None = None,
    *,
    has_zeros: bool = False,
    console: Console | None = None,
) -> Any:
    """A copy of a pruned model that is trained on the task's loss and on the teacher's outputs.

    Args:
        pruned: the model with its task; it is not changed.
        teacher: the model that it was made of; it is not changed.
        records: see `healing_records`.
        steps: optimizer steps; None: one pass over the records.
        has_zeros: zeros of linear layers stay zero.
        console: output for messages and progress; None: it prints nothing.

    Raises:
        UserError: the loss becomes NaN or infinite.
    """
    from miniformer.training.api import train
    from miniformer.training.callbacks.nan_check import NonFiniteLossError

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "teacher"
        teacher.save(directory)
        try:
            result = train(
                records,
                in_memory=True,
                start=pruned,
                console=console,
                loss_terms=[{"type": "distillation", "teacher": str(directory)}],
                callbacks=["weight_masks"] if has_zeros else [],
                **({"max_epochs": 1} if steps is None else {"max_steps": steps}),
            )
        except NonFiniteLossError as error:
            raise UserError(
                f"heal: {error.problem}; prune less, or leave heal out and train the pruned "
                f"directory with a low rate: {_TRAIN_ZEROS if has_zeros else _TRAIN}"
            ) from None
    return result.pipeline.model
