"""SIGINT (Ctrl-C) and SIGTERM end training after the current batch, so that it can be saved."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException


class TrainingInterrupted(Exception):
    """Training is interrupted by a signal."""


class InterruptCallback(L.Callback):
    """Ends training between batches at the first SIGINT or SIGTERM; a second signal acts at once.

    A signal on one rank ends all ranks after the same step.

    Use it as a context manager around `Trainer.fit` and as one of its callbacks. The first signal
    ends the block without an error. Other errors propagate.

    Args:
        grace_period: seconds in which further signals are ignored: an interrupted launcher
            forwards a signal that its workers have already received.
    """

    def __init__(self, grace_period: float = 0.0) -> None:
        self.grace_period = grace_period
        self.signal: int | None = None
        self._signal_time = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job
                    self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, exc_type: object, error: BaseException | None, traceback: object) -> bool:
        self._restore_handlers()
        if isinstance(error, SystemExit) and not isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from None  # Lightning exits at a second Ctrl-C
        if isinstance(error, RuntimeError):  # workers receive the same signal
            return self.signal is not None and "DataLoader worker" in str(error)
        # Lightning raises SIGTERMException where it handles the signal first.
        return isinstance(error, TrainingInterrupted | SIGTERMException)

    def on_train_batch_end(self, trainer: Any = None, module: Any = None, *args: Any) -> None:
        if trainer is None or trainer.world_size == 1:
            self._raise_if_signaled()
        elif module.stop_requested and module.between_steps:  # reduced over all ranks
            self.signal = self.signal or signal.SIGTERM
            raise TrainingInterrupted
        else:
            module.stop_requested = self.signal is not None

    def on_validation_batch_end(self, trainer: Any = None, *args: Any) -> None:
        if trainer is None or trainer.world_size == 1:
            self._raise_if_signaled()

    def _handle_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._signal_time = signum, time.monotonic()
            if not self.grace_period:
                self._restore_handlers()
        elif time.monotonic() - self._signal_time > self.grace_period:
            self._restore_handlers()
            signal.raise_signal(signum)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _raise_if_signaled(self) -> None:
        if self.signal is not None:
            raise TrainingInterrupted
