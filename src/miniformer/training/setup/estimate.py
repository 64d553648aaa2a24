"""Estimates of a run before it starts: steps, time and memory (`--dry_run`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import lightning as L
import torch
from rich.console import Console

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.train_config import TrainConfig
from miniformer.training.resume.auto import resolve_auto_resume
from miniformer.training.resume.config import AUTO, complete_config
from miniformer.training.setup import limits, pretraining
from miniformer.training.setup.auto_tune import auto_tune, autocast_dtype, iter_batches
from miniformer.training.setup.prepare import prepare
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.tuning.dry_run import count_positions, cycle, forward_backward
from miniformer.training.tuning.hardware import cpu_threads
from miniformer.training.tuning.memory_tracker import peak_memory, reset_peak_memory
from miniformer.utils.formats import format_duration
from miniformer.utils.units import format_bytes

_TRIAL_SECONDS = 2.0  # of timed steps
_SAMPLED_BATCHES = 16  # of which the largest decides the memory
_VALIDATION_COST = 1 / 3  # of a training step: no backward pass
_RESERVED_BYTES = 16 * 2**20  # for logging, saving and other work outside of steps


@dataclasses.dataclass(frozen=True)
class RunEstimate:
    """Steps, time and memory that a run needs.

    Args:
        steps: maximum optimizer steps; None: another limit ends the run.
        step_seconds: mean seconds of an optimizer step.
        seconds: seconds of training and validation; None: unknown.
        memory_bytes: peak memory of the process.
    """

    steps: int | None
    step_seconds: float
    seconds: float | None
    memory_bytes: int

    def __str__(self) -> str:
        steps = "unknown" if self.steps is None else f"{self.steps:,}"
        duration = (
            "unknown" if self.seconds is None else format_duration(max(1, round(self.seconds)))
        )
        return (
            "dry run: nothing was trained or written\n"
            f"optimizer steps: {steps} at most, {self.step_seconds:.3g} s each\n"
            f"estimated time: {duration}\n"
            f"predicted memory: {format_bytes(self.memory_bytes)}"
        )


def dry_run(
    config: TrainConfig, console: Console, in_memory: Mapping[str, Any] | None = None
) -> RunEstimate:
    """Reads the data, resolves and prints the settings, and measures a few steps.

    Nothing is written, and the steps are those of a model that is then dropped.

    Args:
        config: the run.
        console: output for progress messages.
        in_memory: see `miniformer.training.run.train`.

    Raises:
        UserError: as of `miniformer.training.run.train`, before its first step.
    """
    config = complete_config(config)
    if config.resume == AUTO:
        config = resolve_auto_resume(config, console.print)
    if config.streaming and config.train_path == "-":
        raise UserError("dry_run would consume standard input; name a file as train_path")
    with cpu_threads(config.threads):
        L.seed_everything(config.seed, verbose=False)
        run = prepare(config, console, in_memory=in_memory)
        if config.resume is None:
            auto_tune(run, console)
            if config.pretrain is not None:
                pretraining.pretrain_config(run)  # checks its settings
                console.print("pretraining is not part of the estimate")
        if config.resume is None and config.auto not in (None, "off"):
            from miniformer.training.trials.candidates import describe

            console.print(describe(run, config))
        console.print(run.summary())
        estimate = estimate_run(run)
    return estimate


def estimate_run(
    run: RunSetup,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = _TRIAL_SECONDS,
) -> RunEstimate:
    """Times steps of a run, which change its model, and predicts the whole run.

    Args:
        run: the prepared run.
        clock: returns the current time in seconds.
        seconds: maximum seconds of timed steps, apart from the first.

    Raises:
        UserError: the training data has no batch.
    """
    config, device = run.config, torch.device(run.device_type)
    model = run.model.to(device).train()
    optimizer = registry.get("optimizer", config.optimizer)(
        model, lr=config.lr or 0.0, weight_decay=config.weight_decay, **config.optimizer_config
    )
    batches = list(islice(iter_batches(run, run.data.batch_size), _SAMPLED_BATCHES))
    if not batches:
        raise UserError("the training data has no batch")

    def step(items: Iterator[Batch]) -> None:
        for batch in islice(items, config.accumulate_grad_batches):
            forward_backward(model, run.task, batch, autocast_dtype(run))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    reset_peak_memory(device)
    step(iter([max(batches, key=count_positions)]))  # also loads libraries
    items, start_time, num_steps = cycle(batches), clock(), 0
    while num_steps < len(batches) and (num_steps == 0 or clock() - start_time < seconds):
        step(items)
        num_steps += 1
    step_seconds = (clock() - start_time) / num_steps
    steps = limits.max_total_steps(config, run.data)
    predicted = peak_memory(device) + _RESERVED_BYTES
    return RunEstimate(
        steps,
        step_seconds,
        _run_seconds(run, steps, step_seconds),
        max(predicted, run.predicted_memory or 0),
    )


def _run_seconds(run: RunSetup, steps: int | None, step_seconds: float) -> float | None:
    """Seconds of training and validation, at most those of max_time; None: unknown."""
    limit = run.config.max_seconds
    if steps is None:
        return limit
    validations = limits.count_validations(run.config, steps, run.num_validations) or 0
    batches = len(run.data.val_dataloader()) if validations else 0
    batch_seconds = step_seconds / run.config.accumulate_grad_batches
    seconds = steps * step_seconds + validations * batches * batch_seconds * _VALIDATION_COST
    return seconds if limit is None else min(seconds, limit)
