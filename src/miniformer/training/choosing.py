"""Settings that are chosen by trying: batch size, what fits into memory, learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console

from miniformer import registry
from miniformer.config.units import format_bytes, parse_bytes
from miniformer.data.batches import Batches
from miniformer.data.buckets import Batch
from miniformer.model.stack import set_activation_checkpointing
from miniformer.training.finding import find_batch_size, find_lr
from miniformer.training.memory import plan_memory
from miniformer.training.preparation import Prepared, checkpoint, device_type, precision
from miniformer.training.progress import reading

_OPTIMIZER_BYTES = {"muon": 8.0, "adamw": 8.0, "schedulefree": 12.0}  # a parameter, at most


def fit_to_machine(run: Prepared, console: Console) -> Prepared:
    """The run with what it leaves to be found out filled in; tells of each.

    Raises:
        UserError: what it needs cannot be had; see `plan_memory` and `find_batch_size`.
    """
    config = run.config
    run.model.to(device_type(config))
    if config.find_batch_size:
        run = _batch_size(run, console)
    if config.memory is not None:
        run = _memory(run, console)
    elif config.activation_checkpointing != "none":
        console.print(
            checkpoint(
                run.model, config.activation_checkpointing, run.task, run.data.train_dataloader()
            )
        )
    return _lr(run, console) if config.find_lr else run


def _batch_size(run: Prepared, console: Console) -> Prepared:
    found = find_batch_size(run.model, run.task, partial(_batches, run), autocast=_autocast(run))
    for line in found.table():
        console.print(line)
    return _with_batches_of(run, found.suggestion, find_batch_size=False)


def _memory(run: Prepared, console: Console) -> Prepared:
    config = run.config
    limit = parse_bytes(str(config.memory))
    assert limit is not None
    plan = plan_memory(
        run.model,
        run.task,
        partial(_batches, run),
        batch_size=run.data.batch_size,
        limit=limit,
        optimizer_bytes_per_param=_OPTIMIZER_BYTES.get(config.optimizer, 12.0)
        + (4.0 if config.ema_decay is not None else 0.0),
        autocast=_autocast(run),
    )
    console.print(f"memory {format_bytes(limit)}: {plan.describe()}")
    set_activation_checkpointing(run.model, plan.activation_checkpointing)
    run.predicted_memory = plan.predicted
    return _with_batches_of(
        run,
        plan.batch_size,
        accumulate_grad_batches=config.accumulate_grad_batches * plan.accumulate_grad_batches,
        activation_checkpointing=plan.activation_checkpointing,
    )


def _lr(run: Prepared, console: Console) -> Prepared:
    config = run.config
    options: dict[str, Any] = {"weight_decay": config.weight_decay, **config.optimizer_config}
    if config.layer_lr_decay != 1.0:
        options["layer_lr_decay"] = config.layer_lr_decay
    with reading(console) as progress:
        run.lr_search = find_lr(
            run.model,
            run.task,
            _Passes(run, run.data.batch_size),
            partial(registry.get("optimizer", config.optimizer), **options),
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=config.gradient_clip_val,
            autocast=_autocast(run),
            progress=partial(progress, "trying learning rates"),
        )
    lr = float(f"{run.lr_search.suggestion:.2g}")
    console.print(f"learning rate: {lr:g}, a tenth of the one with the lowest loss")
    return dataclasses.replace(run, config=dataclasses.replace(config, lr=lr, find_lr=False))


class _Passes:
    """Batches of the training data, as often as they are asked for."""

    def __init__(self, run: Prepared, size: int) -> None:
        self.run, self.size = run, size

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self.run, self.size)


def _batches(run: Prepared, size: int) -> Iterator[Batch]:
    """Batches of the training data, of another size than the run's; on its device."""
    device = torch.device(device_type(run.config))
    cutter = run.task.cutter(
        run.tokenizer,
        seq_len=run.seq_len,
        batch_size=size,
        batch_tokens=_tokens(run, size),
        training=True,
    )
    for batch in Batches(run.data.pools["train"], cutter, seed=run.config.seed):
        yield {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }


def _tokens(run: Prepared, size: int) -> int | None:
    """The run's limit of tokens in a batch, for batches of another size."""
    limit = run.config.batch_tokens
    return None if limit is None else max(1, limit * size // run.data.batch_size)


def _with_batches_of(run: Prepared, size: int, **changes: Any) -> Prepared:
    tokens = _tokens(run, size)
    run.data.batch_size, run.data.batch_tokens = size, tokens
    config = dataclasses.replace(run.config, batch_size=size, batch_tokens=tokens, **changes)
    return dataclasses.replace(run, config=config)


def _autocast(run: Prepared) -> torch.dtype | None:
    return torch.bfloat16 if precision(run.config) == "bf16" else None
