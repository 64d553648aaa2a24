"""Length of the inputs of a model whose `input` makes several of them one vector."""

from __future__ import annotations

import dataclasses

import torch

from miniformer.config import TransformerConfig, UserError
from miniformer.model.embedding import make_embedding, max_inputs
from miniformer.tasks.base import Task


def fit_input_length(task: Task, config: TransformerConfig, seq_len: int) -> Task:
    """Returns the task with the number of inputs that make `seq_len` vectors.

    Args:
        task: one of inputs or sources; other tasks stay as they are.
        config: of the model, with an `input`.
        seq_len: maximum vectors of a sequence.

    Raises:
        UserError: the task has a `max_input_len` that is larger.
    """
    if not hasattr(task, "max_input_len"):
        return task
    with torch.device("meta"):
        limit = max_inputs(make_embedding(config), seq_len)
    if task.max_input_len is not None and task.max_input_len > limit:
        raise UserError(
            f"task_config: max_input_len={task.max_input_len} makes more than {seq_len} vectors; "
            f"lower it to {limit}, or raise max_seq_len in model_config"
        )
    if task.max_input_len is not None or limit == seq_len:
        return task
    return dataclasses.replace(task, max_input_len=limit)  # type: ignore[call-arg]
