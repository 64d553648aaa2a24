"""Warnings of limits that lie beyond the end of a run."""

from __future__ import annotations

import warnings

from miniformer.config import NoEffectWarning
from miniformer.config.train_checks import unreachable_limit_warnings
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig
from miniformer.training.distributed.launcher import rank


def max_total_steps(config: TrainConfig, data: MiniFormerDataModule) -> int | None:
    """Optimizer steps of a run; fewer where time or early stopping ends it. None: not known."""
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.effective_max_epochs is not None:
        try:
            batches = -(-len(data.train_dataloader()) // config.world_size)
        except TypeError:  # of data that is not in memory only the end of a pass tells
            batches = None
        if batches is not None:
            limits.append(
                config.effective_max_epochs * -(-batches // config.accumulate_grad_batches)
            )
    return min(limits, default=None)


def warn_unreached_limits(config: TrainConfig, total_steps: int | None) -> None:
    """Warns of each limit that a run of so many steps does not come to, on rank 0.

    Args:
        config: the run.
        steps: see `steps_at_most`.
    """
    if rank() == 0:
        for message in unreachable_limit_warnings(config, total_steps):
            warnings.warn(message, NoEffectWarning, stacklevel=3)
