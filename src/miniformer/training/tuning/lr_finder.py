"""Learning rate finder and batch size finder.

`find_lr` is the learning rate range test (Smith 2015, arXiv 1506.01186). `find_batch_size` doubles
the batch size until the throughput stops growing. Both restore the model.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.base import Task
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
from miniformer.utils.plotting import new_axes, save_png
from miniformer.utils.units import format_bytes

_SMOOTHING = 0.9  # of the loss: weight of the previous average
_DIVERGENCE_FACTOR = 4.0  # over the lowest loss
# The suggestion is the learning rate of the lowest loss divided by this. For short runs of small
# models it is closer to the best one than the point of steepest descent, especially with Muon.
_SUGGESTION_DIVISOR = 10.0
_MIN_SPEEDUP = 1.05  # in tokens per second, for a larger batch to be worthwhile
_BATCHES_PER_SIZE = 4
_MIN_TOKEN_GROWTH = 1.5  # when the batch size doubles; below it, the data has no larger batch


@dataclasses.dataclass(frozen=True)
class LRFinderResult:
    """Result of a learning rate range test.

    Args:
        lrs: learning rate of each step.
        losses: smoothed loss before each step, in the task's unit.
        suggestion: suggested peak learning rate.
    """

    lrs: list[float]
    losses: list[float]
    suggestion: float

    def plot(self, path: Path, *, unit: str = "nats") -> None:
        """Plots the loss over the learning rate into a PNG file, with the suggestion marked."""
        with new_axes(7, 4.2) as axes:
            axes.semilogx(self.lrs, self.losses)
            axes.xaxis.set_major_formatter("{x:g}")
            label = f"suggested: {self.suggestion:.2g}"
            axes.axvline(self.suggestion, color="C1", linestyle="--", label=label)
            axes.set(xlabel="learning rate", ylabel=f"training loss ({unit}, smoothed)")
            axes.set_title("learning-rate range test")
            axes.legend()
            save_png(axes, path)


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
    """Trains with an exponentially rising learning rate until the loss diverges.

    The loss diverges if its smoothed value exceeds four times the minimum, or is NaN or infinite.
    The suggestion is a tenth of the learning rate at the minimum.

    Args:
        model: the model on its training device; its weights and state are restored.
        task: computes the loss.
        batches: training batches, repeated if there are too few.
        make_optimizer: returns an optimizer for the model and `lr`; `lr_scale` of groups applies.
        min_lr: learning rate of the first step.
        max_lr: learning rate of the last step.
        num_steps: maximum number of optimizer steps.
        accumulate_grad_batches: batches in a step.
        gradient_clip_val: maximum gradient norm; 0: no clipping.
        autocast: dtype of mixed precision; None: no autocast.
        progress: called with the number of completed steps and `num_steps`.

    Raises:
        UserError: there are no batches, or the first loss is NaN or infinite.
    """
    initial_state = {name: value.clone() for name, value in model.state_dict().items()}
    lrs: list[float] = []
    losses: list[float] = []
    try:
        with restore_model_state(model):
            optimizer = make_optimizer(model, lr=min_lr)
            getattr(optimizer, "train", lambda: None)()  # schedule-free optimizers have two modes
            source, mean = cycle(batches), 0.0
            for step in range(num_steps):
                lr = min_lr * (max_lr / min_lr) ** (step / max(1, num_steps - 1))
                loss = _accumulate_gradients(
                    model, task, list(islice(source, accumulate_grad_batches)), autocast
                )
                mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
                smooth = mean / (1 - _SMOOTHING ** (step + 1))
                if not math.isfinite(smooth) or smooth > _DIVERGENCE_FACTOR * min(
                    losses, default=smooth
                ):
                    break
                lrs.append(lr)
                losses.append(smooth)
                if gradient_clip_val:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip_val)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group.get("lr_scale", 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if progress is not None:
                    progress(step + 1, num_steps)
    finally:
        model.load_state_dict(initial_state)
    if not losses:
        raise UserError(f"find_lr: the loss is {loss} before any step; check the data")
    return LRFinderResult(lrs, losses, _suggest_lr(lrs, losses))


def _accumulate_gradients(
    model: nn.Module, task: Task, batches: list[Batch], autocast: torch.dtype | None
) -> float:
    """Accumulates the gradient of the mean loss of the batches; returns the loss."""
    if not batches:
        raise UserError("find_lr: there is no training data")
    passes = [forward_backward(model, task, batch, autocast) for batch in batches]
    count = sum(float(batch_count) for _, batch_count in passes)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(max(count, 1e-12))
    return sum(float(loss) for loss, _ in passes) / max(count, 1e-12)


def _suggest_lr(lrs: list[float], losses: list[float]) -> float:
    lowest = min(range(len(losses)), key=losses.__getitem__)
    return max(lrs[lowest] / _SUGGESTION_DIVISOR, lrs[0])


@dataclasses.dataclass(frozen=True)
class BatchSizeFinderResult:
    """Throughput of several batch sizes.

    Args:
        batch_sizes: examples in a batch.
        tokens_per_second: throughput of forward and backward passes, including padding.
        memory_bytes: memory of a step.
        stop_reason: reason for the search to stop.
        suggestion: the smallest batch size within 5 % of the highest throughput.
    """

    batch_sizes: list[int]
    tokens_per_second: list[float]
    memory_bytes: list[int]
    stop_reason: str
    suggestion: int

    def format_table(self) -> list[str]:
        """Formats the results as lines of a table."""
        lines = [f"{'batch_size':>10}  {'tokens/s':>10}  {'memory':>8}"]
        for size, speed, memory in zip(
            self.batch_sizes, self.tokens_per_second, self.memory_bytes, strict=True
        ):
            mark = "  <- suggested" if size == self.suggestion else ""
            lines.append(f"{size:>10}  {speed:>10,.0f}  {format_bytes(memory):>8}{mark}")
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
    """Measures the throughput of doubling batch sizes and suggests one.

    The search stops if the next size is less than 5 % faster, if memory is insufficient for it (by
    linear extrapolation of the last two sizes), or if the data has no larger batch. The state of
    the model is restored, without gradients.

    Args:
        model: the model on its training device.
        task: computes the loss.
        make_batches: returns batches of the given size.
        memory_limit: maximum bytes of a step; None: available memory of the device.
        initial_batch_size: the first size.
        min_seconds: minimum seconds of timing per size.
        autocast: dtype of mixed precision; None: no autocast.
        clock: returns the current time in seconds.

    Raises:
        UserError: the first size does not fit, or there is no data.
    """
    device = get_model_device(model)
    limit = available_memory(device) if memory_limit is None else memory_limit
    rows: list[tuple[int, float, int]] = []  # size, tokens per second, bytes
    size, max_positions, stop_reason = initial_batch_size, 0, ""
    with restore_model_state(model):
        while not stop_reason:
            batches = list(islice(make_batches(size), _BATCHES_PER_SIZE))
            positions = max(map(count_positions, batches), default=0)
            if not batches or positions < _MIN_TOKEN_GROWTH * max_positions:
                stop_reason = f"the data has no batch of {size}"
                break
            max_positions = positions
            if limit is not None and _predict_next_memory([row[2] for row in rows]) > limit:
                stop_reason = f"{size} would take more than {format_bytes(limit)}"
                break
            try:
                largest = max(batches, key=count_positions)
                memory = step_memory_growth(
                    partial(forward_backward, model, task, largest, autocast), device
                )
                speed = throughput(model, task, batches, min_seconds, autocast, clock)
            except torch.OutOfMemoryError:
                stop_reason = f"{size} takes more memory than there is"
                break
            finally:
                clear_gradients(model)
            if limit is not None and memory > limit:
                stop_reason = (
                    f"{size} takes {format_bytes(memory)}, more than {format_bytes(limit)}"
                )
                break
            rows.append((size, speed, memory))
            if len(rows) > 1 and speed < _MIN_SPEEDUP * rows[-2][1]:
                stop_reason = f"{size} is hardly faster than {rows[-2][0]}"
            size *= 2
    if not rows:
        raise UserError(f"find_batch_size: {stop_reason}; make the model or seq_len smaller")
    best = max(speed for _, speed, _ in rows)
    suggestion = next(size for size, speed, _ in rows if speed * _MIN_SPEEDUP >= best)
    sizes, speeds, memory_bytes = (list(column) for column in zip(*rows, strict=True))
    return BatchSizeFinderResult(sizes, speeds, memory_bytes, stop_reason, suggestion)


def _predict_next_memory(memory: list[int]) -> int:
    """Extrapolates linearly to the next size, twice the last one."""
    if len(memory) < 2:
        return 2 * sum(memory)
    return 3 * memory[-1] - 2 * memory[-2]
