"""Callbacks that end a run and keep its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from miniformer.training.budget import Budget


class StopAtBudget(L.Callback):
    """Ends training once the budget is spent."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.budget.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.budget.progress(trainer.global_step) >= 1.0:
            trainer.should_stop = True


class KeepBest(L.Callback):
    """Calls `save` whenever the validation loss is the lowest so far.

    Args:
        save: given the validation figures, writes the model.
    """

    def __init__(self, save: Callable[[dict[str, float]], None]) -> None:
        self.save = save
        self.best: dict[str, float] | None = None
        self.validated_at = -1  # optimiser step of the last complete validation

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.validated_at = trainer.global_step
        figures = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name[:4] == "val_"
        }
        if self.best is None or figures["val_loss"] < self.best["val_loss"]:
            self.best = {**figures, "step": trainer.global_step}
            self.save(self.best)
