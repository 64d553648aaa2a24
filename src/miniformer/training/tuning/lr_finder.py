"""Settings found by trying: the learning rate and the batch size.

`find_lr` is the learning-rate range test (Smith 2015, arXiv 1506.01186); `find_batch_size` doubles
the batch until it is no faster for each token. Both leave the model as it was.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.base import Task
from miniformer.training.report.plots import plot_lr_search
from miniformer.training.tuning.dry_run import (
    clear_gradients,
    count_positions,
    cycle,
    forward_backward,
    get_model_device,
    restore_model_state,
    throughput,
)
from miniformer.training.tuning.memory_tracker import available_memory, step_memory_growth
from miniformer.utils.units import format_bytes

_SMOOTHING = 0.9  # of the loss: the share of what was before
_DIVERGENCE_FACTOR = 4.0  # times the best loss
# The suggestion lies this much below the rate of the lowest loss. On small models that is nearer to
# the best rate of short runs than where the loss falls fastest, with AdamW and more so with Muon.
_SUGGESTION_DIVISOR = 10.0
_MIN_SPEEDUP = 1.05  # times as many tokens a second: what makes a larger batch worth having
_BATCHES_PER_SIZE = 4  # batches of each size
_MIN_TOKEN_GROWTH = (
    1.5  # times as many tokens, at least, when the batch size doubles; less: the data ends
)


@dataclasses.dataclass(frozen=True)
class LRFinderResult:
    """What a learning-rate range test saw.

    Args:
        rates: the learning rate of each step.
        losses: the smoothed loss before each step, in the task's unit.
        suggestion: the rate to train with at most.
    """

    lrs: list[float]
    losses: list[float]
    suggestion: float

    def plot(self, path: Path, *, unit: str = "nats") -> None:
        """Draws the loss over the rate into a PNG file, with the suggestion marked."""
        plot_lr_search(self.lrs, self.losses, self.suggestion, path, unit=unit)


def find_lr(
    model: nn.Module,
    task: Task,
    batches: Iterable[Batch],
    make_optimizer: Callable[..., torch.optim.Optimizer],
    *,
    min_lr: float = 1e-6,
    max_lr: float = 1.0,
    num_steps: int = 100,
    accumulate_grad_batches: int = 1,
    gradient_clip_val: float = 1.0,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LRFinderResult:
    """Trains with a learning rate that rises from step to step until the loss diverges.

    It diverges where its smoothed value is above four times the lowest so far, or not finite. The
    suggestion is a tenth of the rate at the lowest.

    Args:
        model: on the device that it is trained on; weights and all else are left as they were.
        task: knows the loss.
        batches: of training; gone through again where there are too few.
        make_optimizer: given the model and `lr`, an optimiser; a group's `lr_scale` is heeded.
        low: rate of the first step.
        high: rate of the last.
        steps: of the optimiser.
        accumulate_grad_batches: batches in a step.
        gradient_clip_val: longest gradient (its norm); 0: any.
        autocast: the type of mixed precision; None: no autocast.
        progress: told the steps done and all of them.

    Raises:
        UserError: there are no batches, or the loss is not finite from the start.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rates: list[float] = []
    losses: list[float] = []
    try:
        with restore_model_state(model):
            optimizer = make_optimizer(model, lr=min_lr)
            getattr(optimizer, "train", lambda: None)()  # schedulefree's has two modes
            source, mean = cycle(batches), 0.0
            for step in range(num_steps):
                rate = min_lr * (max_lr / min_lr) ** (step / max(1, num_steps - 1))
                loss = _accumulate_gradients(
                    model, task, list(islice(source, accumulate_grad_batches)), autocast
                )
                mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
                smooth = mean / (1 - _SMOOTHING ** (step + 1))
                if not math.isfinite(smooth) or smooth > _DIVERGENCE_FACTOR * min(
                    losses, default=smooth
                ):
                    break
                rates.append(rate)
                losses.append(smooth)
                if gradient_clip_val:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip_val)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if progress is not None:
                    progress(step + 1, num_steps)
    finally:
        model.load_state_dict(before)
    if not losses:
        raise UserError(f"find_lr: the loss is {loss} before any step; look at the data")
    return LRFinderResult(rates, losses, _suggest_lr(rates, losses))


def _accumulate_gradients(
    model: nn.Module, task: Task, batches: list[Batch], autocast: torch.dtype | None
) -> float:
    """The mean loss of some batches; its gradient is in the model."""
    if not batches:
        raise UserError("find_lr: there is no training data to try rates on")
    passes = [forward_backward(model, task, batch, autocast) for batch in batches]
    count = sum(float(each) for _, each in passes)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(max(count, 1e-12))
    return sum(float(loss) for loss, _ in passes) / max(count, 1e-12)


def _suggest_lr(lrs: list[float], losses: list[float]) -> float:
    lowest = min(range(len(losses)), key=losses.__getitem__)
    return max(lrs[lowest] / _SUGGESTION_DIVISOR, lrs[0])


@dataclasses.dataclass(frozen=True)
class BatchSizeFinderResult:
    """How fast batches of some sizes are.

    Args:
        sizes: examples in a batch.
        throughput: tokens a second of each, padding included, in forward and backward pass.
        memory: bytes that a step of each takes.
        stopped: why there are no larger ones.
        suggestion: the smallest that is within 5 % of the fastest.
    """

    batch_sizes: list[int]
    tokens_per_second: list[float]
    memory_bytes: list[int]
    stop_reason: str
    suggestion: int

    def format_table(self) -> list[str]:
        """Lines for the user."""
        lines = [f"{'batch_size':>10}  {'tokens/s':>10}  {'memory':>8}"]
        for size, speed, taken in zip(
            self.batch_sizes, self.tokens_per_second, self.memory_bytes, strict=True
        ):
            mark = "  <- suggested" if size == self.suggestion else ""
            lines.append(f"{size:>10}  {speed:>10,.0f}  {format_bytes(taken):>8}{mark}")
        return [*lines, self.stop_reason]


def find_batch_size(
    model: nn.Module,
    task: Task,
    make_batches: Callable[[int], Iterator[Batch]],
    *,
    memory_limit: int | None = None,
    initial_batch_size: int = 1,
    min_seconds: float = 2.0,
    autocast: torch.dtype | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSizeFinderResult:
    """Tokens a second at batches of `start`, twice that, and so on, and which size to take.

    It ends where the next size is less than 5 % faster, where memory does not suffice for it (a
    straight line through the last two sizes tells beforehand), or where the data has no larger
    batch. The model is left as it was found, without gradients.

    Args:
        model: on the device that it is trained on.
        task: knows the loss.
        batches_for: batches of so many examples each.
        limit_bytes: what a step may take; None: what the device has left.
        start: the first size.
        seconds: for which each is timed, at least.
        autocast: the type of mixed precision; None: no autocast.
        clock: seconds that go by.

    Raises:
        UserError: not even the first size can be had.
    """
    device = get_model_device(model)
    limit = available_memory(device) if memory_limit is None else memory_limit
    rows: list[tuple[int, float, int]] = []  # size, tokens a second, bytes
    size, largest, stopped = initial_batch_size, 0, ""
    with restore_model_state(model):
        while not stopped:
            batches = list(islice(make_batches(size), _BATCHES_PER_SIZE))
            if not batches or max(map(count_positions, batches)) < _MIN_TOKEN_GROWTH * largest:
                stopped = f"the data has no batch of {size}"
                break
            largest = max(map(count_positions, batches))
            if limit is not None and _predict_next_memory([row[2] for row in rows]) > limit:
                stopped = f"{size} would take more than {format_bytes(limit)}"
                break
            try:
                heaviest = max(batches, key=count_positions)
                taken = step_memory_growth(
                    lambda: forward_backward(model, task, heaviest, autocast), device
                )
                speed = throughput(model, task, batches, min_seconds, autocast, clock)
            except torch.OutOfMemoryError:
                stopped = f"{size} takes more memory than there is"
                break
            finally:
                clear_gradients(model)
            if limit is not None and taken > limit:
                stopped = f"{size} takes {format_bytes(taken)}, more than {format_bytes(limit)}"
                break
            rows.append((size, speed, taken))
            if len(rows) > 1 and speed < _MIN_SPEEDUP * rows[-2][1]:
                stopped = f"{size} is hardly faster than {rows[-2][0]}"
            size *= 2
    if not rows:
        raise UserError(
            f"find_batch_size: {stopped}; begin with less than {initial_batch_size}, or use less"
        )
    best = max(speed for _, speed, _ in rows)
    enough = next(size for size, speed, _ in rows if speed * _MIN_SPEEDUP >= best)
    sizes, speeds, taken_by = (list(column) for column in zip(*rows, strict=True))
    return BatchSizeFinderResult(sizes, speeds, taken_by, stopped, enough)


def _predict_next_memory(memory: list[int]) -> int:
    """What the next size takes, twice the last: on a straight line."""
    if len(memory) < 2:
        return 2 * sum(memory)
    return 3 * memory[-1] - 2 * memory[-2]
