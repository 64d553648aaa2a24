"""Callbacks for the budget, validation, the best checkpoint and weight averages."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
from torch import nn

from miniformer.config import UserError
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.nan_check import NonFiniteLossError
from miniformer.training.distributed.launcher import broadcast_from_rank0
from miniformer.training.lightning_internals import request_validation
from miniformer.training.optim.weight_averaging import CheckpointAverage, Ema

MIN_VALIDATIONS = 10  # of a run
COOLDOWN_VALIDATIONS = 5  # of the phase after early stopping
MAX_TIME_SHARE = 1 / 7  # of the time of a run, for validation


class BudgetStopping(L.Callback):
    """Ends training at the limit of the budget, or at the end of a stream.

    Args:
        budget: the limits of the run.
        log_fn: prints the message about the end of a stream.

    Raises:
        UserError: a stream ended before the first step.
    """

    def __init__(self, budget: Budget, log_fn: Callable[[str], Any]) -> None:
        self.budget, self.log_fn = budget, log_fn
        self._empty_epochs = 0  # consecutive passes over the data without a batch

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        self.budget.start()

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        self._empty_epochs += 1
        # A run that is resumed at its limit takes no further step.
        if trainer.global_step and self.budget.progress(trainer.global_step) >= 1.0:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._empty_epochs = 0
        if self.budget.progress(trainer.global_step) >= 1.0:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if self._empty_epochs < 2:  # a resumed run may begin at the end of a pass
            return
        if not trainer.global_step:
            raise UserError("train_path: the stream ended before the first optimizer step")
        self.log_fn(f"the stream ended after {trainer.global_step:,} steps")
        trainer.should_stop = True


class ValidationSchedule(L.Callback):
    """Schedules validations by optimizer steps, or by epochs and fractions of the budget.

    Lightning's `val_check_interval` counts batches, not optimizer steps.

    Args:
        budget: the run's limits.
        every_n_steps: optimizer steps between validations; None: `num_validations` over the run,
            spaced evenly by the limit that the run reaches first.
        num_validations: see `every_n_steps`; 0: none.
        every_epoch: also validates after each epoch, for runs whose number of epochs is unknown.
        max_time_share: with a limit of time, validations that would take more than this fraction
            of it are skipped, apart from the last one.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        every_n_steps: int | None = None,
        num_validations: int = MIN_VALIDATIONS,
        every_epoch: bool = False,
        max_time_share: float = MAX_TIME_SHARE,
    ) -> None:
        self.budget, self.every_n_steps = budget, every_n_steps
        self.num_validations, self.every_epoch = num_validations, every_epoch
        self.max_time_share = max_time_share
        self.pending = False  # a validation is due, or was interrupted
        self._validations_done = (0, 0)  # before the cooldown, and in it

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if module.between_steps:
            due = self._count_due(trainer.global_step)
            is_last = self.budget.progress(trainer.global_step) >= 1.0 and (
                self.num_validations > 0 or self.every_n_steps is not None
            )
            is_due = due > self._validations_done and self._is_affordable()
            self.pending = self.pending or is_due or is_last
            self._validations_done = due
        request_validation(trainer, self.pending and module.between_steps)

    def _count_due(self, step: int) -> tuple[int, int]:
        """Validations due by now: before the cooldown, and in it."""
        cooldown = self.budget.cooldown
        if self.every_n_steps is not None:
            return step // self.every_n_steps, 0
        if cooldown is not None:
            count = min(self.num_validations, COOLDOWN_VALIDATIONS)
            return self._validations_done[0], int(cooldown.fraction(step) * count)
        count = int(self.budget.progress(step) * self.num_validations)
        if self.every_epoch and self.num_validations:
            count += int(self.budget.epochs)
        return count, 0

    def _is_affordable(self) -> bool:
        """Returns whether one more validation stays within the share of the time."""
        budget = self.budget
        if self.every_n_steps is not None or budget.max_seconds is None:
            return True  # a run without a limit of time is reproducible
        limit = self.max_time_share * budget.seconds
        return broadcast_from_rank0(lambda: budget.validation_seconds <= limit)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.pending = False

    def state_dict(self) -> dict[str, Any]:
        return {"done": list(self._validations_done), "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        done = state["done"]
        self._validations_done = tuple(done) if isinstance(done, list) else (done, 0)
        self.pending = state["pending"]


def metrics_from_trainer(trainer: L.Trainer, prefix: str = "val") -> dict[str, float]:
    """Metrics of the last validation or test: `val_loss` and the metrics of the task."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name.startswith(f"{prefix}_")}


class BestModelCheckpoint(L.Callback):
    """Saves the model at the best value of a metric.

    Ties, such as equal accuracy, are broken by the lower validation loss.

    Args:
        save_fn: saves the model; called with the validation metrics.
        monitor: the metric.
        maximize: larger values are better.
    """

    def __init__(
        self,
        save_fn: Callable[[dict[str, float]], None],
        *,
        monitor: str = "val_loss",
        maximize: bool = False,
    ) -> None:
        self.save_fn, self.monitor, self.sign = save_fn, monitor, -1 if maximize else 1
        self.best_metrics: dict[str, float] | None = None
        self.last_validation_step = -1  # optimizer step of the last complete validation

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.last_validation_step = trainer.global_step
        metrics = metrics_from_trainer(trainer)
        if not math.isfinite(metrics["val_loss"]):
            raise NonFiniteLossError("validation", metrics["val_loss"], trainer.global_step)
        self.update({**metrics, "step": trainer.global_step})

    def update(self, metrics: dict[str, float]) -> bool:
        """Saves the model if its metrics are the best so far; returns True if they are."""
        best = self.best_metrics
        if best is not None and not self._sort_key(metrics) < self._sort_key(best):
            return False
        self.best_metrics = metrics
        self.save_fn(metrics)
        return True

    def _sort_key(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Key that is smallest for the best model."""
        value = self.sign * metrics[self.monitor]
        return math.inf if math.isnan(value) else value, metrics["val_loss"]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best_metrics, "at": self.last_validation_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metrics, self.last_validation_step = state["best"], state["at"]


class WeightAveraging(L.Callback):
    """Swaps averaged weights in for validation and saving.

    Args:
        model: the model.
        ema_decay: decay of the exponential moving average (EMA); None: no EMA. Schedule-free
            optimizers have averages of their own.
        average_checkpoints: validations whose weights are averaged at the end; None: none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ema_decay: float | None = None,
        average_checkpoints: int | None = None,
    ) -> None:
        self.ema = None if ema_decay is None else Ema(model, ema_decay)
        self.checkpoint_average = (
            None if average_checkpoints is None else CheckpointAverage(model, average_checkpoints)
        )
        self._in_use = False

    @property
    def averages(self) -> dict[str, Ema | CheckpointAverage]:
        """The averages in the state of a run, by name."""
        named = {"ema": self.ema, "last": self.checkpoint_average}
        return {name: average for name, average in named.items() if average is not None}

    @contextlib.contextmanager
    def use_averaged_weights(self, module: Any) -> Iterator[None]:
        """Context manager in which the model has the averaged weights."""
        self._swap(module, averages=True)
        try:
            yield
        finally:
            self._swap(module, averages=False)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.ema is not None:
            self.ema.state_tensors()  # initialize the EMA with the first weights

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if self.ema is not None and module.between_steps:
            self.ema.update()

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            self._swap(module, averages=True)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            if self.checkpoint_average is not None:
                self.checkpoint_average.add()
            self._swap(module, averages=False)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self._swap(module, averages=False)

    def _swap(self, module: Any, *, averages: bool) -> None:
        """Gives the model the averaged weights, or its own."""
        if averages != self._in_use:
            self._in_use = averages
            if self.ema is not None:
                self.ema.swap()
            module.set_optimizer_mode(not averages)
