"""Ctrl-C and SIGTERM end training after the batch under way, so that what was learnt is kept."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Interrupted(Exception):
    """Training was asked to stop."""


class InterruptCallback(L.Callback):
    """Ends training between batches at the first SIGINT or SIGTERM; a second acts at once.

    Of several devices all end after the same step, once one of them is asked to.

    Use it as a context manager around `Trainer.fit` and as one of its callbacks. The first signal
    ends what is within without an error; every other error goes its way.

    Args:
        grace: seconds in which a second signal is the same wish: a launcher that is interrupted
            passes on what has reached its processes already.
    """

    def __init__(self, grace: float = 0.0) -> None:
        self.grace = grace
        self.signal: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._restore()
        if isinstance(error, SystemExit) and not isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from None  # Lightning's own answer to a second Ctrl-C
        if isinstance(error, RuntimeError):  # worker processes that were sent the same signal
            return self.signal is not None and "DataLoader worker" in str(error)
        # Lightning has an answer of its own to SIGTERM, where it sees it first.
        return isinstance(error, Interrupted | SIGTERMException)

    def on_train_batch_end(self, trainer: Any = None, module: Any = None, *args: Any) -> None:
        if trainer is None or trainer.world_size == 1:
            self._stop_if_asked()
        elif module.stop_asked and module.between_steps:  # all devices know
            self.signal = self.signal or signal.SIGTERM
            raise Interrupted
        else:
            module.stop_asked = self.signal is not None

    def on_validation_batch_end(self, trainer: Any = None, *args: Any) -> None:
        if trainer is None or trainer.world_size == 1:
            self._stop_if_asked()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._at = number, time.monotonic()
            if not self.grace:
                self._restore()
        elif time.monotonic() - self._at > self.grace:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop_if_asked(self) -> None:
        if self.signal is not None:
            raise Interrupted
