"""All uses of Lightning's internals; the bound on its version in pyproject.toml is for them."""

from __future__ import annotations

import math
import sys

import lightning as L


def set_global_step(trainer: L.Trainer, step: int) -> None:
    """Sets the counter of steps in manual optimization, which `trainer.global_step` reads."""
    steps = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
    steps.ready = steps.completed = step


def request_validation(trainer: L.Trainer, due: bool) -> None:
    """Requests a validation after this batch, or none; called in `on_train_batch_end`.

    An epoch ends with the last batch of its loader. Lightning would end it after as many batches as
    the first epoch has.
    """
    trainer.val_check_batch, loop = 1 if due else sys.maxsize, trainer.fit_loop
    if math.isfinite(loop.max_batches) and loop._combined_loader is not None:
        loop.max_batches, loop._combined_loader.limits = sys.maxsize, [math.inf]


def run_validation(trainer: L.Trainer) -> None:
    """Runs a validation within `fit` at once."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
