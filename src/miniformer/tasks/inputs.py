"""Batches of inputs that are read as a whole, and a model's outputs for a user's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from miniformer.config import InputError
from miniformer.data.buckets import Batch, pad
from miniformer.data.table import Example
from miniformer.data.tokenizer import Tokenizer
from miniformer.tasks.tokens import check_inputs

if TYPE_CHECKING:
    from miniformer.tasks.input_task import InputTask

_NOT_FOR_MODELS = ("inputs", "cut", "record")  # of an example
_AT_ONCE = 32  # inputs predicted at once


def collate_inputs(examples: list[Example], random: np.random.Generator | None = None) -> Batch:
    """A batch: `inputs`, int64 [B, T] or float32 [B, T, F].

    Also what else the examples have: numbers as [B], such as `labels`, and arrays filled with 0 on
    the right, such as `token_types`, int64 [B, T]. Where it is needed there is `attention_mask`,
    bool [B, T].
    """
    inputs, mask = pad([example["inputs"] for example in examples])
    batch: Batch = {"inputs": inputs}
    if mask is not None:
        batch["attention_mask"] = mask
    for name, first in examples[0].items():
        if name in _NOT_FOR_MODELS:
            continue
        values = [example[name] for example in examples]
        is_array = isinstance(first, np.ndarray) and first.ndim > 0
        batch[name] = pad(values)[0] if is_array else torch.tensor(values)
    return batch


def inputs_of(model: Any, batch: Batch) -> dict[str, Any]:
    """What a model reads of such a batch, by the names of `Transformer.features`' arguments."""
    types = batch.get("token_types") if model.config.token_types is not None else None
    mask = batch.get("attention_mask")
    return {"inputs": batch["inputs"], "attention_mask": mask, "token_types": types}


def batches_of(
    task: InputTask,
    model: Any,
    tokenizer: Tokenizer | None,
    inputs: Sequence[Any],
    *,
    truncate: bool = False,
    output: Callable[[Any, Batch], Tensor] | None = None,
) -> Iterator[Tensor]:
    """The model's outputs for a user's inputs, some at a time, [some, outputs] each.

    All inputs are encoded, as in training, before the model runs.

    Args:
        task: encodes them.
        model: the model.
        tokenizer: None: the task reads no text.
        inputs: as in records.
        truncate: cut inputs that are too long, as training does.
        output: the model's output for a batch, [B, ...]; None: the task's `logits`.

    Raises:
        InputError: inputs are not what the model was trained on, or longer than it reads.
    """
    limit = model.config.max_seq_len
    records = check_inputs(inputs, task.kind(), task.input_dim)
    examples: list[Example] = []
    for first in range(0, len(records), _AT_ONCE):
        examples += task.encoded(records[first : first + _AT_ONCE], tokenizer, limit)
    if not (truncate and task.reads_beginning()):
        hint = ", or truncate it" if task.reads_beginning() else ""
        too_long = {
            number: f"is {len(example['inputs']) + example['cut']} long; the model reads at most "
            f"{limit}; shorten it{hint}"
            for number, example in enumerate(examples)
            if example["cut"]
        }
        if too_long:
            raise InputError(too_long)
    return _outputs(model, examples, output or task.logits)


def _outputs(
    model: Any, examples: list[Example], output: Callable[[Any, Batch], Tensor]
) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    for first in range(0, len(examples), _AT_ONCE):
        batch = collate_inputs(examples[first : first + _AT_ONCE])
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.inference_mode():
            found = output(model, batch).cpu()
        yield found
