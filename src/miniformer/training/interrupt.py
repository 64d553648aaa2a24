"""Ctrl-C and SIGTERM end training after the batch under way, so that what was learnt is kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

import lightning as L


class Interrupted(Exception):
    """Training was asked to stop."""


class InterruptCallback(L.Callback):
    """Ends training between batches at the first SIGINT or SIGTERM; a second acts at once.

    Use it as a context manager around `Trainer.fit` and as one of its callbacks.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def on_train_batch_end(self, *args: Any) -> None:
        self._stop_if_asked()

    def on_validation_batch_end(self, *args: Any) -> None:
        self._stop_if_asked()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop_if_asked(self) -> None:
        if self.signal is not None:
            raise Interrupted
