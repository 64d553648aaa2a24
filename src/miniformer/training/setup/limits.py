"""Warnings about limits that a run does not reach."""

from __future__ import annotations

import warnings

from miniformer.config import NoEffectWarning
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.validation import MIN_VALIDATIONS
from miniformer.training.distributed.launcher import rank


def make_budget(
    config: TrainConfig, data: MiniFormerDataModule, num_validations: int
) -> tuple[Budget, int | None]:
    """The limits of a run, and its maximum number of steps; warns about limits out of reach."""
    total_steps = max_total_steps(config, data)
    warn_unreached_limits(config, total_steps, num_validations)
    budget = Budget(
        max_steps=config.max_steps,
        max_epochs=config.effective_max_epochs,
        max_seconds=config.max_seconds,
    )
    return budget, total_steps


def max_total_steps(config: TrainConfig, data: MiniFormerDataModule) -> int | None:
    """Maximum number of optimizer steps by max_steps and max_epochs; None: unknown."""
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.effective_max_epochs is not None:
        steps = steps_per_epoch(config, data)
        limits += [] if steps is None else [config.effective_max_epochs * steps]
    return min(limits, default=None)


def steps_per_epoch(config: TrainConfig, data: MiniFormerDataModule) -> int | None:
    """Optimizer steps of an epoch; None: unknown, since the data is not in memory."""
    try:
        batches = -(-len(data.train_dataloader()) // config.world_size)
    except TypeError:
        return None
    return -(-batches // config.accumulate_grad_batches)


def count_epochs(config: TrainConfig, data: MiniFormerDataModule) -> float | None:
    """Epochs of a run by max_epochs and max_steps; None: unknown."""
    epochs: list[float] = []
    if config.effective_max_epochs is not None:
        epochs.append(config.effective_max_epochs)
    if config.max_steps is not None:
        steps = steps_per_epoch(config, data)
        epochs += [config.max_steps / steps] if steps else []
    return min(epochs, default=None)


def warn_unreached_limits(
    config: TrainConfig, total_steps: int | None, num_validations: int
) -> None:
    """Warns about each limit that a run of `total_steps` does not reach, on rank 0.

    Args:
        config: the run.
        total_steps: see `max_total_steps`.
        num_validations: those of a whole run, if val_check_interval is null.
    """
    if rank() == 0:
        for message in unreachable_limit_warnings(config, total_steps, num_validations):
            warnings.warn(message, NoEffectWarning, stacklevel=3)


def unreachable_limit_warnings(
    config: TrainConfig, max_steps: int | None, num_validations: int = MIN_VALIDATIONS
) -> list[str]:
    """Warnings about settings that take effect only after the end of the run.

    Args:
        config: the run.
        max_steps: maximum optimizer steps; None: unknown.
        num_validations: those of a whole run, if val_check_interval is null; 0: none.
    """
    messages = []
    warmup = config.warmup_steps
    if warmup is not None and max_steps is not None and warmup > max_steps:
        messages.append(
            f"warmup_steps={warmup} is longer than the run of {max_steps} steps, so "
            "the learning rate never reaches lr"
        )
    validations = count_validations(config, max_steps, num_validations)
    if not num_validations or validations is None:
        return messages
    patience = config.early_stopping_patience
    if patience and patience + 1 >= validations:  # the first one counts as an improvement
        messages.append(
            f"early_stopping_patience={patience} cannot end a run of {validations} validations "
            "early; lower it or val_check_interval"
        )
    if config.average_checkpoints is not None and config.average_checkpoints > validations:
        messages.append(
            f"average_checkpoints={config.average_checkpoints} averages {validations} only: "
            "the run has no more validations; lower it or val_check_interval"
        )
    return messages


def count_validations(
    config: TrainConfig, max_steps: int | None, num_validations: int = MIN_VALIDATIONS
) -> int | None:
    """Number of validations in a run of at most `max_steps` optimizer steps; None: unknown."""
    if config.val_check_interval is None:
        return num_validations if max_steps is None else min(num_validations, max_steps)
    return None if max_steps is None else -(-max_steps // config.val_check_interval)
