"""Fits a run into a memory limit: micro-batch size, accumulation and activation checkpointing.

The peak memory of a run is the sum of:

    memory before the first step    interpreter, libraries, data, weights
    optimizer state                 8 bytes per parameter for AdamW
    growth of a step                gradients, activations, fragmentation

The first and the last are measured, with steps of growing size (see `memory_tracker`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import nn

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.model.ops.activation_checkpointing import CHECKPOINTING_MODES
from miniformer.tasks.base import Task
from miniformer.training.tuning.dry_run import (
    clear_gradients,
    count_positions,
    forward_backward,
    get_model_device,
    restore_model_state,
)
from miniformer.training.tuning.memory_tracker import (
    current_memory,
    peak_tensor_bytes,
    reset_peak_memory,
    step_memory_growth,
)
from miniformer.utils.units import format_bytes

__all__ = ["MemoryPlan", "peak_tensor_bytes", "plan_memory"]

# Below it, matrix products are so slow that a larger batch with recomputation is faster.
_MIN_EFFICIENT_TOKENS = 512
_SAMPLED_BATCHES = 4  # the largest counts
_MAX_TRIAL_GROWTH = 4  # of the size from one trial to the next, which limits extrapolation
# Reserve for clipping, logging and other work outside of trial steps, in bytes; and for later
# fragmentation, as a fraction of the growth of a step (not on GPUs).
_RESERVED_BYTES, _FRAGMENTATION_RATIO = 16 * 2**20, 0.2

BatchFactory = Callable[[int], Iterator[Batch]]


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Settings with which a run fits into its memory limit.

    Args:
        batch_size: examples in a micro-batch.
        accumulate_grad_batches: micro-batches in one optimizer step.
        activation_checkpointing: none, selective or full.
        predicted_bytes: predicted peak memory of the process.
    """

    batch_size: int
    accumulate_grad_batches: int
    activation_checkpointing: str
    predicted_bytes: int

    def summary(self) -> str:
        """Summarizes the plan in one line."""
        batches = f"batches of {self.batch_size}"
        if self.accumulate_grad_batches > 1:
            batches = f"{self.accumulate_grad_batches} {batches}, accumulated"
        mode = self.activation_checkpointing
        mode = "no" if mode == "none" else mode
        predicted = format_bytes(self.predicted_bytes)
        return f"{batches}; {mode} activation checkpointing; {predicted} predicted at most"


def plan_memory(
    model: nn.Module,
    task: Task,
    make_batches: BatchFactory,
    *,
    batch_size: int,
    limit_bytes: int,
    optimizer_bytes_per_param: float,
    base_bytes: int | None = None,
    autocast: torch.dtype | None = None,
) -> MemoryPlan:
    """Plans the fastest steps of `batch_size` examples within a memory limit.

    The plan is the largest micro-batch without checkpointing. If it has fewer than 512 tokens, the
    largest one with selective checkpointing, then with full checkpointing, whose recomputation
    costs a third more. If none has 512 tokens, the largest of all.

    The growth of a step is measured at micro-batches of 1 and 2, then at sizes extrapolated from
    the last two, until no larger one fits. Sizes that are predicted not to fit are not tried. The
    state of the model is restored, without gradients.

    Args:
        model: the model on its training device.
        task: computes the loss.
        make_batches: returns batches of the given size; the largest of the first four counts.
        batch_size: examples in an optimizer step.
        limit_bytes: memory limit of the process; on a GPU, of its tensors.
        optimizer_bytes_per_param: optimizer state per trained parameter: 8 for AdamW.
        base_bytes: memory before the first step; None: measured after a small step, which loads
            libraries.
        autocast: dtype of mixed precision; None: no autocast.

    Raises:
        UserError: a single example with full checkpointing does not fit.
    """
    device = get_model_device(model)
    num_params = sum(param.numel() for param in model.parameters() if param.requires_grad)
    with restore_model_state(model):

        def measure_growth(size: int) -> int:
            batch = max(islice(make_batches(size), _SAMPLED_BATCHES), key=count_positions)

            def step() -> None:
                if size >= batch_size:  # no accumulation: gradients are cleared after each step
                    clear_gradients(model)
                forward_backward(model, task, batch, autocast)

            tokens[size] = count_positions(batch)
            try:
                growth = step_memory_growth(step, device)
            except torch.OutOfMemoryError:  # the GPU is smaller than the limit
                return 2 * limit_bytes
            finally:
                clear_gradients(model)
            return growth if device.type == "cuda" else int(growth * (1 + _FRAGMENTATION_RATIO))

        tokens: dict[int, int] = {}
        if base_bytes is None:
            set_activation_checkpointing(model, CHECKPOINTING_MODES[-1])
            measure_growth(1)
            reset_peak_memory(device)
            base_bytes = current_memory(device)
        fixed = base_bytes + int(optimizer_bytes_per_param * num_params) + _RESERVED_BYTES
        plans, growth = [], 0
        for mode in CHECKPOINTING_MODES:
            set_activation_checkpointing(model, mode)
            size, growth = largest_fitting_micro_batch(
                measure_growth, batch_size, limit_bytes - fixed
            )
            if size:
                plans.append(MemoryPlan(size, -(-batch_size // size), mode, fixed + growth))
                if size >= batch_size or tokens[size] >= _MIN_EFFICIENT_TOKENS:
                    return plans[-1]
        reset_peak_memory(device)
    if not plans:
        raise UserError(
            f"memory_limit={format_bytes(limit_bytes)} is too little: single examples with full "
            f"activation checkpointing need {format_bytes(fixed + growth)}, of which "
            f"{format_bytes(base_bytes)} are in use before training; raise memory_limit, or make "
            "the model or seq_len smaller"
        )
    return max(plans, key=lambda plan: plan.batch_size)  # of equal sizes the first


def largest_fitting_micro_batch(
    measure_growth: Callable[[int], int], batch_size: int, available_bytes: int
) -> tuple[int, int]:
    """Returns the largest micro-batch that fits, and its memory growth.

    If no micro-batch fits, the result is 0 and the growth of 1.

    Args:
        measure_growth: returns the memory growth of a step for a micro-batch size.
        batch_size: the maximum size.
        available_bytes: the maximum growth.
    """
    size, growth = 1, measure_growth(1)
    if growth > available_bytes:
        return 0, growth
    previous_size, previous_growth = 0, growth
    max_size = min(2, batch_size)
    failed_size, failed_growth = 0, 0  # of the smallest trial that did not fit
    while (new_size := _micro_batch_size(max_size, batch_size)) > size:
        new_growth = measure_growth(new_size)
        if new_growth <= available_bytes:
            previous_size, previous_growth, size, growth = size, growth, new_size, new_growth
        else:
            failed_size, failed_growth = new_size, new_growth
        if failed_size:
            slope = (failed_growth - growth) / (failed_size - size)
            max_size = min(failed_size - 1, size + int((available_bytes - growth) / slope))
        else:
            slope = (growth - previous_growth) / (size - previous_size)
            steps = (available_bytes - growth) / slope if slope > 0 else batch_size
            max_size = int(min(size + steps, _MAX_TRIAL_GROWTH * size, batch_size))
    return size, growth


def _micro_batch_size(max_size: int, batch_size: int) -> int:
    """Returns a micro-batch size up to `max_size` that divides `batch_size` exactly or nearly.

    The largest divisor is preferred if it is more than half of `max_size`.
    """
    divisor = next(size for size in range(max_size, 0, -1) if batch_size % size == 0)
    return divisor if 2 * divisor > max_size else -(-batch_size // -(-batch_size // max_size))
