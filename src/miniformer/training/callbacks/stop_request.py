"""Callbacks of the user that end a run, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.early_stopping import EarlyStopping
from miniformer.training.distributed.strategies import all_gather_object


def stop_run(trainer: L.Trainer, reason: str) -> None:
    """Ends the run of a callback, such as after a validation.

    On one device training ends after the current batch; on several ones at the end of the current
    or next validation, also if only one of the processes requests it. The terminal, the report and
    the result of the run have the reason.

    Args:
        trainer: the Trainer that calls the callback.
        reason: such as "accuracy is above 0.95".
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    requests = [callback for callback in callbacks if isinstance(callback, StopRequests)]
    for callback in requests:
        callback.requested = callback.requested or reason
    if trainer.world_size == 1 or not requests:
        trainer.should_stop = True


class StopRequests(L.Callback):
    """Ends training where callbacks of the user request it, on all devices; follows them.

    A callback requests it with `stop_run`, or by setting `trainer.should_stop`.

    Args:
        budget: the run's limits.
        early_stopping: ends runs by itself.
        log_fn: prints the message.
    """

    def __init__(
        self, budget: Budget, early_stopping: EarlyStopping, log_fn: Callable[[str], Any]
    ) -> None:
        self.budget, self.early_stopping, self.log_fn = budget, early_stopping, log_fn
        self.requested: str | None = None  # reason, in this process
        self.reason: str | None = None  # for which the run has ended
        self.stop_step: int | None = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.reason is not None:  # a resumed run has ended
            trainer.should_stop = True
            self.log_fn(
                f"a callback has stopped the run at step {self.stop_step:,}: {self.reason}; it "
                "takes no further step"
            )

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if trainer.world_size == 1:
            self._update(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            self._update(trainer)

    def _update(self, trainer: L.Trainer) -> None:
        if self.reason is not None:
            return
        reasons = all_gather_object(self.requested or self._reason_of_other(trainer))
        self.reason = next(filter(None, reasons), None)
        if self.reason is not None:
            self.stop_step = trainer.global_step
            trainer.should_stop = True
            self.log_fn(f"stopped at step {self.stop_step:,}: {self.reason}")

    def _reason_of_other(self, trainer: L.Trainer) -> str | None:
        """Reason of a callback that has set `trainer.should_stop` itself, if any."""
        own = self.budget.progress(trainer.global_step) >= 1.0
        if own or self.early_stopping.stop_step is not None or not trainer.should_stop:
            return None
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        # Lightning's EarlyStopping has a message.
        messages = (getattr(item, "stopping_reason_message", None) for item in callbacks)
        return next(filter(None, messages), "a callback has set trainer.should_stop")

    def state_dict(self) -> dict[str, Any]:
        if self.reason is None:
            return {}
        return {"reason": self.reason, "stop_step": self.stop_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reason, self.stop_step = state["reason"], state["stop_step"]
