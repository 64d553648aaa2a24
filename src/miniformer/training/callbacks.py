"""Callbacks that end a run, validate it and keep its models."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import lightning as L

from miniformer.config import UserError
from miniformer.training.budget import Budget


def check_finite(loss: float, kind: str, step: int) -> None:
    """Ends a run that learns nothing any more.

    Raises:
        UserError: the loss is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"the {kind} loss is {loss} at step {step}; lower lr, or raise warmup_steps"
        )


class StopAtBudget(L.Callback):
    """Ends training once the budget is spent."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.budget.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.budget.progress(trainer.global_step) >= 1.0:
            trainer.should_stop = True


class ValidateInTime(L.Callback):
    """Says when to validate, in optimiser steps or shares of the budget.

    Lightning's `val_check_interval` counts batches, which are no steps where gradients are
    accumulated; so it is told anew after each batch whether to validate now.

    Args:
        budget: the run's limits.
        interval: optimiser steps between two validations; None: `times` over the run, evenly in
            whichever limit it reaches first.
        times: see `interval`.
    """

    def __init__(self, budget: Budget, *, interval: int | None = None, times: int = 5) -> None:
        self.budget, self.interval, self.times = budget, interval, times
        self._done = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if self.interval is not None:
            due = step // self.interval
        else:
            due = int(self.budget.progress(step) * self.times)
        trainer.val_check_batch = 1 if due > self._done else sys.maxsize
        self._done = due


def figures_of(trainer: L.Trainer, kind: str = "val") -> dict[str, float]:
    """What the last validation (or test) measured: `val_loss` and the task's other metrics."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name.startswith(f"{kind}_")}


class KeepBest(L.Callback):
    """Calls `save` whenever a validation figure is the best so far.

    Args:
        save: given the validation figures, writes the model.
        metric: the figure.
        larger: whether a larger one is better.
    """

    def __init__(
        self,
        save: Callable[[dict[str, float]], None],
        *,
        metric: str = "val_loss",
        larger: bool = False,
    ) -> None:
        self.save, self.metric, self.sign = save, metric, -1 if larger else 1
        self.best: dict[str, float] | None = None
        self.validated_at = -1  # optimiser step of the last complete validation

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.validated_at = trainer.global_step
        figures = figures_of(trainer)
        check_finite(figures["val_loss"], "validation", trainer.global_step)
        now = self.sign * figures[self.metric]
        if self.best is None or now < self.sign * self.best[self.metric]:
            self.best = {**figures, "step": trainer.global_step}
            self.save(self.best)
