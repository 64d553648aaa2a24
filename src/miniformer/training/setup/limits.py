"""Warnings about limits that a run does not reach."""

from __future__ import annotations

import warnings

from miniformer.config import NoEffectWarning
from miniformer.config.train_checks import unreachable_limit_warnings
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig
from miniformer.training.distributed.launcher import rank


def max_total_steps(config: TrainConfig, data: MiniFormerDataModule) -> int | None:
    """Maximum number of optimizer steps by max_steps and max_epochs; None: unknown."""
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.effective_max_epochs is not None:
        try:
            batches = -(-len(data.train_dataloader()) // config.world_size)
        except TypeError:  # the number of batches is known only for data in memory
            batches = None
        if batches is not None:
            limits.append(
                config.effective_max_epochs * -(-batches // config.accumulate_grad_batches)
            )
    return min(limits, default=None)


def warn_unreached_limits(config: TrainConfig, total_steps: int | None) -> None:
    """Warns about each limit that a run of `total_steps` does not reach, on rank 0.

    Args:
        config: the run.
        total_steps: see `max_total_steps`.
    """
    if rank() == 0:
        for message in unreachable_limit_warnings(config, total_steps):
            warnings.warn(message, NoEffectWarning, stacklevel=3)
