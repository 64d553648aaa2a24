"""Model outputs for a user's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import InputError
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.input_encoding import check_inputs, collate_inputs
from miniformer.tasks.common.sequence_input import InputTask

_BATCH_SIZE = 32  # inputs predicted at once


def predict_batches(
    task: InputTask,
    model: Any,
    tokenizer: Tokenizer | None,
    inputs: Sequence[Any],
    *,
    truncate: bool = False,
    output_fn: Callable[[Any, Batch], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yields the model's outputs for a user's inputs in batches, [B, outputs] each.

    All inputs are encoded and checked before the model runs.

    Args:
        task: encodes them.
        model: the model.
        tokenizer: None: the task reads no text.
        inputs: in the format of records.
        truncate: truncate inputs that are too long, as training does.
        output_fn: computes the output of a batch, [B, ...]; None: the task's `logits`.

    Raises:
        InputError: inputs differ in kind from the training data, or are longer than max_seq_len.
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
            output = output_fn(model, batch).cpu()
        yield output
