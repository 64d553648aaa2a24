"""Training budget: limits on optimizer steps, epochs and seconds, and the progress toward them."""

from __future__ import annotations

import dataclasses
import math
import time

import lightning as L
from lightning.pytorch.callbacks import Timer

from miniformer.config import UserError
from miniformer.data.batching.loader import BatchLoader


@dataclasses.dataclass(frozen=True)
class Cooldown:
    """The last phase of a run that stops early: the learning rate decays linearly to 0.

    Args:
        start_step: optimizer steps before it.
        num_steps: its optimizer steps, after which the run ends.
        start_progress: progress of the run at its start.
        start_lr_factor: factor on the peak learning rate at its start.
    """

    start_step: int
    num_steps: int
    start_progress: float
    start_lr_factor: float

    def fraction(self, steps: int) -> float:
        """Completed fraction after `steps` optimizer steps of the run, in [0, 1]."""
        return min(1.0, max(0, steps - self.start_step) / self.num_steps)

    def lr_factor(self, steps: int) -> float:
        """Factor on the peak learning rate for the step after `steps`."""
        return self.start_lr_factor * (1 - self.fraction(steps))


class Budget:
    """The limits of a run, its clock, and the epochs done.

    Args:
        max_steps: maximum number of optimizer steps; None: no limit.
        max_epochs: maximum number of passes over the training data; None: no limit.
        max_seconds: maximum wall-clock seconds since `start`; None: no limit.
    """

    def __init__(
        self,
        *,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_seconds: float | None = None,
    ) -> None:
        self.max_steps, self.max_epochs, self.max_seconds = max_steps, max_epochs, max_seconds
        self.cooldown: Cooldown | None = None  # set by early stopping
        self.epochs = 0.0  # done by the optimizer steps so far; updated by the LightningModule
        self.synced_seconds: float | None = None  # the clock of rank 0, shared by all ranks
        self._start_time: float | None = None
        self._pace_start = (0.0, 0.0)  # seconds and progress from which the speed is measured
        self._finished_validation_seconds = 0.0
        self._validation_start_time: float | None = None  # None: not validating

    def start(
        self, *, epochs: float = 0.0, seconds: float = 0.0, validation_seconds: float = 0.0
    ) -> None:
        """Starts the clock and the epoch count; a resumed run passes its earlier totals."""
        self._start_time, self.epochs = time.monotonic() - seconds, epochs
        self._finished_validation_seconds, self._validation_start_time = validation_seconds, None
        self.synced_seconds = None if self.synced_seconds is None else seconds

    def state_dict(self) -> dict[str, float]:
        """Arguments of `start` for a resumed run."""
        return {
            "epochs": self.epochs,
            "seconds": self.local_seconds,
            "validation_seconds": self.validation_seconds,
        }

    def start_validation(self) -> None:
        """Counts time as validation until `end_validation`."""
        self._validation_start_time = time.monotonic()

    def end_validation(self) -> None:
        """Counts time as training again."""
        self._finished_validation_seconds = self.validation_seconds
        self._validation_start_time = None

    @property
    def seconds(self) -> float:
        """Seconds since `start`, on the clock that all ranks share."""
        return self.local_seconds if self.synced_seconds is None else self.synced_seconds

    @property
    def local_seconds(self) -> float:
        """Seconds since `start`, on this rank's own clock."""
        return 0.0 if self._start_time is None else time.monotonic() - self._start_time

    @property
    def validation_seconds(self) -> float:
        """Part of `local_seconds` spent in validation, including the current one."""
        start_time = self._validation_start_time
        current = 0.0 if start_time is None else time.monotonic() - start_time
        return self._finished_validation_seconds + current

    @property
    def training_seconds(self) -> float:
        """Part of `local_seconds` spent in training."""
        return self.local_seconds - self.validation_seconds

    def progress(self, steps: int, epochs: float | None = None) -> float:
        """Fraction of the run done, in [0, 1]; 0 without a limit.

        Args:
            steps: optimizer steps done.
            epochs: passes over the data done; None: `self.epochs`.
        """
        epochs = self.epochs if epochs is None else epochs
        by_steps = steps / self.max_steps if self.max_steps else 0.0
        by_epochs = epochs / self.max_epochs if self.max_epochs else 0.0
        by_time = self.seconds / self.max_seconds if self.max_seconds else 0.0
        progress = min(1.0, max(by_steps, by_epochs, by_time))
        if self.cooldown is None:
            return progress
        start = self.cooldown.start_progress
        return max(progress, start + (1 - start) * self.cooldown.fraction(steps))

    def remaining_seconds(self, progress: float) -> float:
        """Estimated seconds to the end of the run at its speed since `measure_pace`; 0: unknown.

        Args:
            progress: fraction of the run done.
        """
        seconds, start = self._pace_start
        if progress <= start:
            return 0.0
        return (self.seconds - seconds) * (1 - progress) / (progress - start)

    def measure_pace(self, progress: float) -> None:
        """Measures the speed from now on, at this progress: after a resumption, in a cooldown."""
        self._pace_start = (self.seconds, progress)


def budget_from_trainer(trainer: L.Trainer, scheduler: str, accumulate_grad_batches: int) -> Budget:
    """Limits of a `Trainer` that the user created.

    Raises:
        UserError: it has no limit, which the schedule needs.
    """
    steps = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
    if epochs > 0 and math.isfinite(batches):
        steps.append(epochs * math.ceil(batches / accumulate_grad_batches))
    loader = trainer.train_dataloader
    # Without a known number of batches, the batches of a `BatchLoader` have their epoch.
    counted = isinstance(loader, BatchLoader) and loader.chunks.num_chunks is not None
    max_epochs = epochs if epochs > 0 and counted and not math.isfinite(batches) else None
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    seconds = [left for left in (timer.time_remaining() for timer in timers) if left]
    if not (steps or max_epochs or seconds or scheduler == "none"):
        raise UserError(
            f"scheduler={scheduler} needs to know when training ends; give the Trainer "
            "max_steps, max_time, or max_epochs over data of known length, or use "
            "scheduler='none'"
        )
    return Budget(
        max_steps=min(steps, default=None),
        max_epochs=max_epochs,
        max_seconds=min(seconds, default=None),
    )
