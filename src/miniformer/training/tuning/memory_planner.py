"""What fits into a limit of memory: micro-batch, accumulation and activation checkpointing.

A run needs, at its fullest moment:

    what is there before the first step    interpreter, libraries, data, weights
    + the optimiser's state                8 bytes a parameter for AdamW
    + the growth of a step                 gradients, activations, and the holes between them

The first and the last are measured, on steps of growing size (see `training.peak`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import nn

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.model.ops.activation_checkpointing import CHECKPOINTING_MODES
from miniformer.model.stack import set_activation_checkpointing
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

# With fewer in a batch, matrix products are slow enough for recomputation to be the faster way.
_MIN_EFFICIENT_TOKENS = 512
_SAMPLED_BATCHES = 4  # batches, of which the heaviest counts
_MAX_TRIAL_GROWTH = (
    4  # times the size of one trial to the next: a line through two points goes only so far
)
# Beside what the trials show: clipping, logging and whatever else they do not do, in bytes; and of
# a step's growth, for holes between tensors that open only later. A GPU's tensors have no holes.
_RESERVED_BYTES, _FRAGMENTATION_RATIO = 16 * 2**20, 0.2

BatchFactory = Callable[[int], Iterator[Batch]]


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How a run fits into its memory.

    Args:
        batch_size: examples in a micro-batch.
        accumulate_grad_batches: micro-batches in one optimiser step.
        activation_checkpointing: none, selective or full.
        predicted: bytes of the process at most.
    """

    batch_size: int
    accumulate_grad_batches: int
    activation_checkpointing: str
    predicted_bytes: int

    def summary(self) -> str:
        """One line for the user."""
        many = self.accumulate_grad_batches
        batches = f"batches of {self.batch_size}"
        if many > 1:
            batches = f"{many} {batches}, accumulated"
        how = self.activation_checkpointing
        kept = "no activation checkpointing" if how == "none" else f"{how} activation checkpointing"
        return f"{batches}; {kept}; {format_bytes(self.predicted_bytes)} predicted at most"


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
    """The fastest way to take steps of `batch_size` examples within a limit of memory.

    That is the largest micro-batch without checkpointing, unless it has fewer than 512 tokens: then
    with selective checkpointing, then with full, whose recomputation costs a third more. Where none
    of them gets as far, the largest of these.

    A step's growth is measured at micro-batches of 1, 2 and then as many as a straight line through
    the last two allows, until no larger one fits; none that would not fit is tried knowingly. The
    model is left as it was found, in training mode or not, without gradients.

    Args:
        model: on the device that it is trained on.
        task: knows the loss.
        batches_for: batches of so many examples each; of the first four the heaviest counts.
        batch_size: examples in an optimiser step.
        limit: bytes that the process may have; on a GPU, that its tensors may.
        optimizer_bytes_per_param: what the optimiser keeps for each trained parameter: 8 for AdamW.
        base: bytes that are there before the first step; None: measured after a first small one,
            which makes libraries load what they need.
        autocast: the type of mixed precision; None: no autocast.

    Raises:
        UserError: not even single examples with full checkpointing fit.
    """
    device = get_model_device(model)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    with restore_model_state(model):

        def measure_growth(size: int) -> int:
            batch = max(islice(make_batches(size), _SAMPLED_BATCHES), key=count_positions)

            def step() -> None:
                if size >= batch_size:  # the optimiser forgets them after each
                    clear_gradients(model)
                forward_backward(model, task, batch, autocast)

            tokens[size] = count_positions(batch)
            try:
                grown = step_memory_growth(step, device)
            except torch.OutOfMemoryError:  # a GPU smaller than the limit
                return 2 * limit_bytes
            finally:
                clear_gradients(model)
            return grown if device.type == "cuda" else int(grown * (1 + _FRAGMENTATION_RATIO))

        tokens: dict[int, int] = {}
        if base_bytes is None:
            set_activation_checkpointing(model, CHECKPOINTING_MODES[-1])
            measure_growth(1)
            reset_peak_memory(device)
            base_bytes = current_memory(device)
        fixed = base_bytes + int(optimizer_bytes_per_param * trained) + _RESERVED_BYTES
        plans, needed = [], 0
        for how in CHECKPOINTING_MODES:
            set_activation_checkpointing(model, how)
            size, needed = largest_fitting_micro_batch(
                measure_growth, batch_size, limit_bytes - fixed
            )
            if size:
                plans.append(MemoryPlan(size, -(-batch_size // size), how, fixed + needed))
                if size >= batch_size or tokens[size] >= _MIN_EFFICIENT_TOKENS:
                    return plans[-1]
        reset_peak_memory(device)
    if not plans:
        raise UserError(
            f"memory_limit={format_bytes(limit_bytes)} is too little: single examples with full activation "
            f"checkpointing need {format_bytes(fixed + needed)}, of which {format_bytes(base_bytes)} are "
            "there before training begins; raise memory, or make the model or seq_len smaller"
        )
    return max(plans, key=lambda plan: plan.batch_size)  # of equal ones the first


def largest_fitting_micro_batch(
    measure_growth: Callable[[int], int], batch_size: int, available_bytes: int
) -> tuple[int, int]:
    """The largest micro-batch whose growth is within `room`, and its growth.

    (0, growth of 1) where not even 1 fits.

    Args:
        measured: the growth at a micro-batch.
        batch_size: the largest worth having.
        room: bytes.
    """
    size, grown = 1, measure_growth(1)
    if grown > available_bytes:
        return 0, grown
    before, before_grown = 0, grown
    most = min(2, batch_size)
    too_large, too_much = 0, 0  # the smallest known not to fit
    while (new := _micro_batch_size(most, batch_size)) > size:
        new_grown = measure_growth(new)
        if new_grown <= available_bytes:
            before, before_grown, size, grown = size, grown, new, new_grown
        else:
            too_large, too_much = new, new_grown
        if too_large:
            slope = (too_much - grown) / (too_large - size)
            most = min(too_large - 1, size + int((available_bytes - grown) / slope))
        else:
            slope = (grown - before_grown) / (size - before)
            steps = (available_bytes - grown) / slope if slope > 0 else batch_size
            most = int(min(size + steps, _MAX_TRIAL_GROWTH * size, batch_size))
    return size, grown


def _micro_batch_size(max_size: int, batch_size: int) -> int:
    """The best micro-batch of at most `most`: its multiples make up `batch_size`, or nearly so.

    A divisor is exact, and taken unless it is half as large as could be, or less.
    """
    divisor = next(size for size in range(max_size, 0, -1) if batch_size % size == 0)
    return divisor if 2 * divisor > max_size else -(-batch_size // -(-batch_size // max_size))
