"""Trying a model out before a run: passes that leave it as it was."""

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


@contextlib.contextmanager
def restore_model_state(model: nn.Module) -> Iterator[None]:
    """Whatever is tried within, afterwards all but the weights is as before.

    That is: which parts are in training mode, activation checkpointing, random numbers, and no
    gradients. Within, the model is in training mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    ways = [
        (module, module.checkpointing) for module in model.modules() if isinstance(module, Stack)
    ]
    with torch.random.fork_rng():
        try:
            model.train()
            yield
        finally:
            for module, training in modes:
                module.training = training
            for stack, how in ways:
                stack.checkpointing = how
            clear_gradients(model)


def clear_gradients(model: nn.Module) -> None:
    """As before the first backward pass."""
    for parameter in model.parameters():
        parameter.grad = None


def get_model_device(model: nn.Module) -> torch.device:
    """Where the weights are."""
    return next(model.parameters()).device


def forward_backward(
    model: nn.Module, task: Task, batch: Batch, autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """A forward and a backward pass; returns the summed loss, detached, and its count.

    Args:
        model: its gradients are added to.
        task: knows the loss.
        batch: on any device.
        autocast: the type of mixed precision; None: no autocast.
    """
    device = get_model_device(model)
    placed: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        loss, count = task.loss(model, placed)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), count


def count_positions(batch: Batch) -> int:
    """Positions of a batch, padding included: what its passes cost."""
    known = count_tokens(batch)[1]
    others = (value.numel() for value in batch.values() if isinstance(value, Tensor))
    return known or max(others, default=0)


def cycle(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches again and again; nothing where there are none."""
    found = True
    while found:
        found = False
        for batch in batches:
            found = True
            yield batch


def throughput(
    model: nn.Module,
    task: Task,
    batches: list[Batch],
    seconds: float,
    autocast: torch.dtype | None,
    clock: Callable[[], float],
) -> float:
    """Tokens a second of forward and backward pass, padding included.

    Args:
        model: its gradients are added to.
        task: knows the loss.
        batches: gone through until `seconds` have gone by, once at least.
        seconds: see `batches`.
        autocast: see `both_passes`.
        clock: seconds that go by.
    """
    device, done, began = get_model_device(model), 0, clock()
    while True:
        for batch in batches:
            forward_backward(model, task, batch, autocast)
            done += count_positions(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed = clock() - began
        if passed >= seconds:
            return done / max(passed, 1e-9)
