"""Callbacks that end a run, validate it and keep its models."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
from torch import nn

from miniformer.config import UserError
from miniformer.training.averaging import Ema, LastWeights
from miniformer.training.budget import Budget
from miniformer.training.finite import NotFiniteError


class StopAtBudget(L.Callback):
    """Ends training once the budget is spent, or a stream.

    Args:
        budget: the limits of the run.
        say: tells of a stream that ended before.

    Raises:
        UserError: a stream ended before the first step.
    """

    def __init__(self, budget: Budget, say: Callable[[str], Any]) -> None:
        self.budget, self.say = budget, say
        self._empty = 0  # passes over the data without a batch, one after another

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.budget.start()

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        self._empty += 1
        # A run may be resumed where it has already reached a limit: it takes no step more.
        if trainer.global_step and self.budget.progress(trainer.global_step) >= 1.0:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._empty = 0
        if self.budget.progress(trainer.global_step) >= 1.0:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if self._empty < 2:  # one may be what was left of a pass that a run goes on with
            return
        if not trainer.global_step:
            raise UserError("train_path: the stream ended before there was a batch for a step")
        self.say(f"the stream ended after {trainer.global_step:,} steps")
        trainer.should_stop = True


class ValidateInTime(L.Callback):
    """Says when to validate, in optimiser steps or shares of the budget.

    Lightning's `val_check_interval` counts batches, which are no steps where gradients are
    accumulated; so it is told anew after each step whether to validate now.

    Args:
        budget: the run's limits.
        interval: optimiser steps between two validations; None: `times` over the run, evenly in
            whichever limit it reaches first.
        times: see `interval`; 0: never.
    """

    def __init__(self, budget: Budget, *, interval: int | None = None, times: int = 5) -> None:
        self.budget, self.interval, self.times = budget, interval, times
        self.pending = False  # a validation follows now, or was interrupted
        self._done = self._step = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        trainer.val_check_batch = sys.maxsize
        if step == self._step:  # in the middle of one
            return
        self._step = step
        progress = self.budget.progress(step)
        due = step // self.interval if self.interval is not None else int(progress * self.times)
        last = progress >= 1.0 and (self.times > 0 or self.interval is not None)
        self.pending = self.pending or due > self._done or last
        self._done = due
        if self.pending:
            trainer.val_check_batch = 1

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.pending = False

    def run_now(self, trainer: L.Trainer) -> None:
        """Validates within `fit`: a validation that was interrupted is made up for."""
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done, "step": self._step, "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done, self._step, self.pending = state["done"], state["step"], state["pending"]


def figures_of(trainer: L.Trainer, kind: str = "val") -> dict[str, float]:
    """What the last validation (or test) measured: `val_loss` and the task's other metrics."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if name.startswith(f"{kind}_")}


class KeepBest(L.Callback):
    """Calls `save` whenever a validation figure is the best so far, and may end the run.

    Of models that are as good, such as classifiers with as many right answers, the one of the least
    loss is the best.

    Args:
        save: given the validation figures, writes the model.
        metric: the figure.
        larger: whether a larger one is better.
        patience: validations without a better one that end the run; None: none do.
    """

    def __init__(
        self,
        save: Callable[[dict[str, float]], None],
        *,
        metric: str = "val_loss",
        larger: bool = False,
        patience: int | None = None,
    ) -> None:
        self.save, self.metric, self.sign = save, metric, -1 if larger else 1
        self.patience = patience
        self.best: dict[str, float] | None = None
        self.since_best = 0  # validations
        self.validated_at = -1  # optimiser step of the last complete validation

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._stop_if_patience_is_over(trainer)  # a run that goes on may have stopped before

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.validated_at = trainer.global_step
        figures = figures_of(trainer)
        if not math.isfinite(figures["val_loss"]):
            raise NotFiniteError("validation", figures["val_loss"], trainer.global_step)
        if self.offer({**figures, "step": trainer.global_step}):
            self.since_best = 0
        else:
            self.since_best += 1
        self._stop_if_patience_is_over(trainer)

    def _stop_if_patience_is_over(self, trainer: L.Trainer) -> None:
        if self.patience is not None and self.since_best >= self.patience:
            trainer.should_stop = True

    def offer(self, figures: dict[str, float]) -> bool:
        """Saves the model if its figures are the best so far; returns whether they are."""
        if self.best is not None and not self._rank(figures) < self._rank(self.best):
            return False
        self.best = figures
        self.save(figures)
        return True

    def _rank(self, figures: dict[str, float]) -> tuple[float, float]:
        """What is least in the best model."""
        return self.sign * figures[self.metric], figures["val_loss"]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best, "at": self.validated_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.since_best = state["best"], state["since_best"]
        self.validated_at = state["at"]


class Averaging(L.Callback):
    """Validates and saves the model with averaged weights, where a run averages them.

    Args:
        model: what is trained.
        ema_decay: of the moving average that is validated and kept; None: there is none, but the
            optimiser may have averages of its own (schedule-free ones do).
        last: validations whose weights are kept for a mean at the end; None: none.
    """

    def __init__(
        self, model: nn.Module, *, ema_decay: float | None = None, last: int | None = None
    ) -> None:
        self.ema = None if ema_decay is None else Ema(model, ema_decay)
        self.last = None if last is None else LastWeights(model, last)
        self._step = 0
        self._in_use: Any = None

    @property
    def kept(self) -> dict[str, Ema | LastWeights]:
        """The averages that belong to the state of a run, by name."""
        named = {"ema": self.ema, "last": self.last}
        return {name: each for name, each in named.items() if each is not None}

    @contextlib.contextmanager
    def in_use(self, module: Any) -> Iterator[None]:
        """The model has the averages."""
        self._enter(module)
        try:
            yield
        finally:
            self._leave(module)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.ema is not None:
            self.ema.tensors()  # the average begins with the first weights

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.ema is not None and trainer.global_step > self._step:
            self.ema.update()
        self._step = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            self._enter(module)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            if self.last is not None:
                self.last.add()
            self._leave(module)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self._leave(module)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]

    def _enter(self, module: Any) -> None:
        if self._in_use is None:
            module.train_mode(False)
            self._in_use = contextlib.nullcontext() if self.ema is None else self.ema.swapped()
            self._in_use.__enter__()

    def _leave(self, module: Any) -> None:
        if self._in_use is not None:
            self._in_use.__exit__(None, None, None)
            self._in_use = None
            module.train_mode(True)
