"""How far a run is, in whichever limit it reaches first: optimiser steps, epochs or seconds."""

from __future__ import annotations

import time


class Budget:
    """The limits of a run, its clock, and how far it has come through its data.

    Args:
        max_steps: optimiser steps at most; None: no limit.
        max_epochs: passes over the training data at most; None: no limit.
        max_seconds: wall-clock seconds at most, from `start`; None: no limit.
    """

    def __init__(
        self,
        *,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_seconds: float | None = None,
    ) -> None:
        self.max_steps, self.max_epochs, self.max_seconds = max_steps, max_epochs, max_seconds
        self.epochs = 0.0  # passes done by the optimiser steps so far; whoever steps keeps it
        self.synced_seconds: float | None = None  # the clock that all devices go by
        self._start_time: float | None = None
        self._finished_validation_seconds = 0.0
        self._validation_start_time: float | None = None  # since this moment

    def start(
        self, *, epochs: float = 0.0, seconds: float = 0.0, validation_seconds: float = 0.0
    ) -> None:
        """Starts the clock, and the count of epochs; a resumed run has some of each behind it."""
        self._start_time, self.epochs = time.monotonic() - seconds, epochs
        self._finished_validation_seconds, self._validation_start_time = validation_seconds, None
        self.synced_seconds = None if self.synced_seconds is None else seconds

    def state_dict(self) -> dict[str, float]:
        """Arguments of `start` with which a resumed run goes on."""
        return {
            "epochs": self.epochs,
            "seconds": self.local_seconds,
            "validation_seconds": self.validation_seconds,
        }

    def start_validation(self) -> None:
        """Counts what follows as validation, until `validation_ends`."""
        self._validation_start_time = time.monotonic()

    def end_validation(self) -> None:
        """Counts what follows as training again."""
        self._finished_validation_seconds, self._validation_start_time = (
            self.validation_seconds,
            None,
        )

    @property
    def seconds(self) -> float:
        """Since `start`, on the clock that all devices go by."""
        return self.local_seconds if self.synced_seconds is None else self.synced_seconds

    @property
    def local_seconds(self) -> float:
        """Since `start`, on this device's own clock."""
        return 0.0 if self._start_time is None else time.monotonic() - self._start_time

    @property
    def validation_seconds(self) -> float:
        """Of `own_seconds`, those spent in validations, one under way among them."""
        since = self._validation_start_time
        return self._finished_validation_seconds + (
            0.0 if since is None else time.monotonic() - since
        )

    @property
    def training_seconds(self) -> float:
        """Of `own_seconds`, those spent in training."""
        return self.local_seconds - self.validation_seconds

    def progress(self, steps: int, epochs: float | None = None) -> float:
        """Share of the run done, in [0, 1]; 0 where there is no limit.

        Args:
            steps: optimiser steps done.
            epochs: passes over the data done; None: those of the steps so far.
        """
        epochs = self.epochs if epochs is None else epochs
        by_steps = steps / self.max_steps if self.max_steps else 0.0
        by_epochs = epochs / self.max_epochs if self.max_epochs else 0.0
        by_time = self.seconds / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(by_steps, by_epochs, by_time))

    def remaining_seconds(self, progress: float) -> float:
        """Seconds to the end of the run, if it goes on as fast as so far; 0 before its first step.

        Args:
            progress: share of the run done.
        """
        return self.seconds * (1 - progress) / progress if progress else 0.0
