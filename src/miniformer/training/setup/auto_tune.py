"""Automatic tuning by trial steps: batch size, memory limit, learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from miniformer import registry
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import BatchLoader
from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.model.ops.activation_checkpointing import saved_activation_bytes
from miniformer.tasks.loss_terms import combined_loss
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.tuning.lr_finder import find_batch_size, find_lr
from miniformer.training.tuning.memory_planner import plan_memory
from miniformer.utils.streams import progress_bars
from miniformer.utils.units import format_bytes, parse_bytes

_OPTIMIZER_BYTES_PER_PARAM = {"muon": 8.0, "adamw": 8.0, "schedulefree": 12.0}  # at most


def auto_tune(run: RunSetup, console: Console) -> None:
    """Determines the settings that the config leaves to trial steps, and prints each.

    Raises:
        UserError: memory is insufficient; see `plan_memory` and `find_batch_size`.
    """
    config = run.config
    run.model.to(run.device_type)
    if config.find_batch_size:
        _tune_batch_size(run, console)
    if config.memory_limit is not None:
        _fit_memory_limit(run, console)
    elif config.activation_checkpointing != "none":
        console.print(_enable_activation_checkpointing(run, config.activation_checkpointing))
    if config.find_lr:
        _tune_lr(run, console)


def _tune_batch_size(run: RunSetup, console: Console) -> None:
    result = find_batch_size(
        run.model, run.task, partial(iter_batches, run), autocast=autocast_dtype(run)
    )
    for line in result.format_table():
        console.print(line)
    _set_batch_size(run, result.suggestion, "find_batch_size: the most tokens per second")
    run.apply([], find_batch_size=False)


def _fit_memory_limit(run: RunSetup, console: Console) -> None:
    config = run.config
    limit = parse_bytes(str(config.memory_limit))
    assert limit is not None
    plan = plan_memory(
        run.model,
        run.task,
        partial(iter_batches, run),
        batch_size=run.data.batch_size,
        limit_bytes=limit,
        optimizer_bytes_per_param=_OPTIMIZER_BYTES_PER_PARAM.get(config.optimizer, 12.0)
        + (4.0 if config.ema_decay is not None else 0.0),
        autocast=autocast_dtype(run),
    )
    console.print(f"memory {format_bytes(limit)}: {plan.summary()}")
    set_activation_checkpointing(run.model, plan.activation_checkpointing)
    run.predicted_memory = plan.predicted_bytes
    reason = "to stay within memory_limit"
    _set_batch_size(run, plan.batch_size, reason)
    accumulated = config.accumulate_grad_batches * plan.accumulate_grad_batches
    run.apply(
        [
            ResolvedSetting("accumulate_grad_batches", accumulated, reason),
            ResolvedSetting("activation_checkpointing", plan.activation_checkpointing, reason),
        ]
    )


def _enable_activation_checkpointing(run: RunSetup, mode: str) -> str:
    """Enables activation checkpointing; returns a line with the memory it saves for a batch."""
    batch, sizes = next(iter(run.data.train_dataloader())), []
    for tested_mode in ("none", mode):
        set_activation_checkpointing(run.model, tested_mode)
        with torch.random.fork_rng():  # keeps the random state of the run
            sizes.append(saved_activation_bytes(partial(_batch_loss, run, batch)))
    before, after = (f"{size / 1e6:,.1f} MB" for size in sizes)
    return f"saved activations of a batch: {after}, {before} without checkpointing"


def _batch_loss(run: RunSetup, batch: Batch) -> Tensor:
    return combined_loss(run.task.loss(run.model, batch))[0]


def _tune_lr(run: RunSetup, console: Console) -> None:
    config = run.config
    options: dict[str, Any] = {"weight_decay": config.weight_decay, **config.optimizer_config}
    if config.layer_lr_decay != 1.0:
        options["layer_lr_decay"] = config.layer_lr_decay
    with progress_bars(console) as progress:
        run.lr_search = find_lr(
            run.model,
            run.task,
            _RepeatableBatches(run, run.data.batch_size),
            partial(registry.get("optimizer", config.optimizer), **options),
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=config.gradient_clip_val,
            autocast=autocast_dtype(run),
            progress=partial(progress, "trying learning rates"),
        )
    lr = float(f"{run.lr_search.suggestion:.2g}")
    reason = "a tenth of the learning rate with the lowest loss"
    console.print(f"learning rate: {lr:g}, {reason}")
    run.apply([ResolvedSetting("lr", lr, f"find_lr: {reason}")], find_lr=False)


class _RepeatableBatches:
    """Re-iterable batches of the training data."""

    def __init__(self, run: RunSetup, batch_size: int) -> None:
        self.run, self.batch_size = run, batch_size

    def __iter__(self) -> Iterator[Batch]:
        return iter_batches(self.run, self.batch_size)


def iter_batches(run: RunSetup, batch_size: int) -> Iterator[Batch]:
    """Yields training batches of the given size, on the device of the run."""
    device = torch.device(run.device_type)
    batcher = run.task.batcher(
        run.tokenizer,
        seq_len=run.seq_len,
        batch_size=batch_size,
        batch_tokens=_scaled_batch_tokens(run, batch_size),
        training=True,
    )
    for batch in BatchLoader(run.data.chunks["train"], batcher, seed=run.config.seed):
        yield {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }


def _scaled_batch_tokens(run: RunSetup, batch_size: int) -> int | None:
    """Scales the run's limit of tokens per batch to another batch size."""
    limit = run.config.batch_tokens
    return None if limit is None else max(1, limit * batch_size // run.data.batch_size)


def _set_batch_size(run: RunSetup, batch_size: int, reason: str) -> None:
    tokens = _scaled_batch_tokens(run, batch_size)
    run.data.batch_size, run.data.batch_tokens = batch_size, tokens
    run.apply([ResolvedSetting("batch_size", batch_size, reason)])
    if tokens is not None:
        run.apply([ResolvedSetting("batch_tokens", tokens, reason)])


def autocast_dtype(run: RunSetup) -> torch.dtype | None:
    """Dtype of mixed precision in the run; None: no autocast."""
    return torch.bfloat16 if run.precision == "bf16" else None
