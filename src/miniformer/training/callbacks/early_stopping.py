"""Early stopping: a run that no longer improves anneals its best weights and ends.

A schedule follows the budget, so a run that stops long before its limit would end at a high
learning rate. Instead, the run goes back to its best weights, and the learning rate decays linearly
to 0 over a short phase (`Cooldown`), as at the end of a warmup-stable-decay schedule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import lightning as L

from miniformer.training.callbacks.budget import Budget, Cooldown
from miniformer.training.callbacks.validation import metrics_from_trainer
from miniformer.training.distributed.launcher import broadcast_from_rank0

MIN_PATIENCE = 5  # validations
_PATIENCE_SHARE = 0.3  # of the validations so far
_COOLDOWN_SHARE = 0.25  # of the steps to the best model; and at least an epoch


class EarlyStopping(L.Callback):
    """Ends a run whose validation no longer improves.

    A validation is an improvement if the metric, or else the loss, is better than at all earlier
    ones: with noisy metrics, or metrics that stay at 0 for long, the loss still shows progress.

    Args:
        budget: the run's limits.
        restore_best: loads the weights of the best model into the model that is trained; None: the
            run continues from its last weights.
        monitor: the metric of the best model.
        maximize: larger values are better.
        patience: validations without improvement before the run ends; None: five, or three tenths
            of the validations so far if those are more; 0: no early stopping.
        cooldown: whether the learning rate is annealed first; else training ends at once.
        log_fn: prints the message.
    """

    def __init__(
        self,
        budget: Budget,
        restore_best: Callable[[], None] | None = None,
        *,
        monitor: str = "val_loss",
        maximize: bool = False,
        patience: int | None = None,
        cooldown: bool = True,
        log_fn: Callable[[str], Any] = print,
    ) -> None:
        self.budget, self.restore_best = budget, restore_best
        self.monitor, self.sign = monitor, -1 if maximize else 1
        self.patience, self.cooldown, self.log_fn = patience, cooldown, log_fn
        self.num_validations = self.wait_count = 0  # in all, and since the last improvement
        self.stop_step: int | None = None  # at which the run ended early
        self.best_step = 0  # step of the best metric
        self._best: dict[str, float] = {}  # smallest signed metric, smallest loss, loss of the best

    @property
    def limit(self) -> int:
        """Validations without improvement that end the run."""
        if self.patience is not None:
            return self.patience
        return max(MIN_PATIENCE, math.ceil(_PATIENCE_SHARE * self.num_validations))

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.stop_step is not None and self.budget.cooldown is None:
            trainer.should_stop = True  # a resumed run has ended early

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn != "fit" or self.patience == 0:
            return
        self._update(metrics_from_trainer(trainer), trainer.global_step)
        can_stop = self.stop_step is None and self.budget.progress(trainer.global_step) < 1.0
        if can_stop and broadcast_from_rank0(lambda: self.wait_count >= self.limit):
            self._stop(trainer, module)

    def _update(self, metrics: dict[str, float], step: int) -> None:
        """Counts the validations without improvement."""
        self.num_validations += 1
        self.wait_count += 1
        values = {"metric": self.sign * metrics[self.monitor], "loss": metrics["val_loss"]}
        improved = [name for name, x in values.items() if x < self._best.get(name, math.inf)]
        best = self._best.get("metric", math.inf), self._best.get("loss_of_best", math.inf)
        if (values["metric"], values["loss"]) < best:  # as of `BestModelCheckpoint`
            self.best_step, self._best["loss_of_best"] = step, values["loss"]
        for name in improved:
            self._best[name], self.wait_count = values[name], 0

    def _stop(self, trainer: L.Trainer, module: Any) -> None:
        self.stop_step = step = trainer.global_step
        message = (
            f"early stopping at step {step:,}: no improvement in {self.wait_count} validations"
        )
        if not self.cooldown:
            trainer.should_stop = True
            self.log_fn(message)
            return
        start = step
        if self.restore_best is not None:
            self.restore_best()
            start = self.best_step
        epoch = step / self.budget.epochs if self.budget.epochs else 0.0
        num_steps = max(1, round(max(_COOLDOWN_SHARE * start, min(epoch, start))))
        lr_factor = module.current_lr / module.lr if module.lr else 0.0
        self.budget.cooldown = Cooldown(step, num_steps, self.budget.progress(step), lr_factor)
        self.budget.measure_pace(self.budget.cooldown.start_progress)
        self.log_fn(
            f"{message}; the learning rate decays to 0 in {num_steps:,} steps from the model of "
            f"step {start:,}"
        )

    def state_dict(self) -> dict[str, Any]:
        cooldown = self.budget.cooldown
        return {
            "validations": [self.num_validations, self.wait_count],
            "best": [self.best_step, self._best],
            "stop_step": self.stop_step,
            "cooldown": None if cooldown is None else dataclasses.asdict(cooldown),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.patience == 0:  # turned off by resuming
            return
        self.num_validations, self.wait_count = state["validations"]
        self.best_step, self._best = state["best"]
        self.stop_step = state["stop_step"]
        if state["cooldown"] is not None:
            self.budget.cooldown = Cooldown(**state["cooldown"])
