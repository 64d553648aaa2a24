"""Batches of inputs that are read as a whole, and a model's outputs for a user's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from miniformer.config import InputError
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, pad_sequences
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.input_encoding import check_inputs

if TYPE_CHECKING:
    from miniformer.tasks.common.sequence_input import InputTask

_NON_MODEL_KEYS = ("inputs", "cut", "record")  # of an example
_BATCH_SIZE = 32  # inputs predicted at once


def collate_inputs(examples: list[Example], random: np.random.Generator | None = None) -> Batch:
    """A batch: `inputs`, int64 [B, T] or float32 [B, T, F].

    Also what else the examples have: numbers as [B], such as `labels`, and arrays filled with 0 on
    the right, such as `token_types`, int64 [B, T]. Where it is needed there is `attention_mask`,
    bool [B, T].
    """
    inputs, mask = pad_sequences([example["inputs"] for example in examples])
    batch: Batch = {"inputs": inputs}
    if mask is not None:
        batch["attention_mask"] = mask
    for name, first in examples[0].items():
        if name in _NON_MODEL_KEYS:
            continue
        values = [example[name] for example in examples]
        is_array = isinstance(first, np.ndarray) and first.ndim > 0
        batch[name] = pad_sequences(values)[0] if is_array else torch.tensor(values)
    return batch


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """What a model reads of such a batch, by the names of `Transformer.features`' arguments."""
    types = batch.get("token_types") if model.config.token_types is not None else None
    mask = batch.get("attention_mask")
    return {"inputs": batch["inputs"], "attention_mask": mask, "token_types": types}


def predict_batches(
    task: InputTask,
    model: Any,
    tokenizer: Tokenizer | None,
    inputs: Sequence[Any],
    *,
    truncate: bool = False,
    output_fn: Callable[[Any, Batch], Tensor] | None = None,
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
    records = check_inputs(inputs, task.resolved_input_kind(), task.input_dim)
    examples: list[Example] = []
    for first in range(0, len(records), _BATCH_SIZE):
        examples += task.encode_inputs(records[first : first + _BATCH_SIZE], tokenizer, limit)
    if not (truncate and task.can_truncate()):
        hint = ", or truncate it" if task.can_truncate() else ""
        too_long = {
            number: f"is {len(example['inputs']) + example['cut']} long; the model reads at most "
            f"{limit}; shorten it{hint}"
            for number, example in enumerate(examples)
            if example["cut"]
        }
        if too_long:
            raise InputError(too_long)
    return _run_batches(model, examples, output_fn or task.logits)


def _run_batches(
    model: Any, examples: list[Example], output_fn: Callable[[Any, Batch], Tensor]
) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    for first in range(0, len(examples), _BATCH_SIZE):
        batch = collate_inputs(examples[first : first + _BATCH_SIZE])
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.inference_mode():
            found = output_fn(model, batch).cpu()
        yield found
