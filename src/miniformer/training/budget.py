"""How far a run is, in whichever limit it reaches first: optimiser steps or seconds."""

from __future__ import annotations

import time


class Budget:
    """The limits of a run, and its clock.

    Args:
        max_steps: optimiser steps at most; None: no limit.
        max_seconds: wall-clock seconds at most, from `start`; None: no limit.
    """

    def __init__(self, *, max_steps: int | None = None, max_seconds: float | None = None) -> None:
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self._started: float | None = None

    def start(self) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since `start`."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def progress(self, steps: int) -> float:
        """Share of the run done after `steps` steps, in [0, 1]; 0 where there is no limit."""
        by_steps = steps / self.max_steps if self.max_steps else 0.0
        by_time = self.seconds / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(by_steps, by_time))
