"""Trial passes of a model before training; the state of the model is restored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import count_tokens
from miniformer.model.stack import Stack
from miniformer.tasks.base import Task
from miniformer.tasks.loss_terms import combined_loss


@contextlib.contextmanager
def restore_model_state(model: nn.Module) -> Iterator[None]:
    """Context manager with the model in training mode, which restores all but the weights.

    It restores training modes, activation checkpointing and the random state, and clears gradients.
    """
    modes = [(module, module.training) for module in model.modules()]
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    checkpointing = [stack.checkpointing for stack in stacks]
    with torch.random.fork_rng():
        try:
            model.train()
            yield
        finally:
            for module, training in modes:
                module.training = training
            for stack, mode in zip(stacks, checkpointing, strict=True):
                stack.checkpointing = mode
            clear_gradients(model)


def clear_gradients(model: nn.Module) -> None:
    """Sets all gradients to None."""
    for parameter in model.parameters():
        parameter.grad = None


def get_model_device(model: nn.Module) -> torch.device:
    """Returns the device of the weights."""
    return next(model.parameters()).device


def forward_backward(
    model: nn.Module, task: Task, batch: Batch, autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Runs a forward and a backward pass; returns the detached summed loss and its count.

    Args:
        model: the model, whose gradients are accumulated.
        task: computes the loss.
        batch: a batch on any device.
        autocast: dtype of mixed precision; None: no autocast.
    """
    device = get_model_device(model)
    moved: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    task.move_helpers(device)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        loss, count = combined_loss(task.loss(model, moved))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), count


def count_positions(batch: Batch) -> int:
    """Counts positions of a batch, including padding."""
    count = count_tokens(batch)[1]
    sizes = (value.numel() for value in batch.values() if isinstance(value, Tensor))
    return count or max(sizes, default=0)


def cycle(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Repeats the batches endlessly; stops if there are none."""
    has_batches = True
    while has_batches:
        has_batches = False
        for batch in batches:
            has_batches = True
            yield batch


def throughput(
    model: nn.Module,
    task: Task,
    batches: list[Batch],
    seconds: float,
    autocast: torch.dtype | None,
    clock: Callable[[], float],
) -> float:
    """Measures tokens per second of forward and backward passes, including padding.

    Args:
        model: the model, whose gradients are accumulated.
        task: computes the loss.
        batches: repeated until `seconds` have passed, at least once.
        seconds: minimum duration.
        autocast: see `forward_backward`.
        clock: returns the current time in seconds.
    """
    device, positions, start_time = get_model_device(model), 0, clock()
    while True:
        for batch in batches:
            forward_backward(model, task, batch, autocast)
            positions += count_positions(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = clock() - start_time
        if elapsed >= seconds:
            return positions / max(elapsed, 1e-9)
