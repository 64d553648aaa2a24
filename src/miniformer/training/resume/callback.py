"""Checkpoints of a run for resuming: all state that the next step depends on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

import miniformer
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.interrupt import TrainingInterrupted
from miniformer.training.callbacks.validation import ValidationSchedule
from miniformer.training.distributed.strategies import all_gather_object
from miniformer.training.lightning_internals import run_validation, set_global_step
from miniformer.training.optim.weight_averaging import CheckpointAverage, Ema
from miniformer.training.resume.callback_states import CallbackStates, UserCallbackStates
from miniformer.training.resume.optimizer_state import allocate_optimizer_state, optimizer_state
from miniformer.training.resume.rng_state import get_rng_state, set_rng_state
from miniformer.training.resume.storage import (
    load_checkpoint_tensors,
    read_checkpoint_metadata,
    write_checkpoint,
)

_MAX_SAVE_OVERHEAD = 0.02  # fraction of the time spent on saving checkpoints
_MIN_SAVE_INTERVAL = 30.0  # minimum seconds between two checkpoints without `interval`


class ResumeCheckpoint(L.Callback):
    """Saves checkpoints of a run and restores one.

    A checkpoint always holds the state after an optimizer step. A snapshot of the RNG state and
    the position in the data is taken after each step, so a run that is interrupted within a step
    can still save the last one.

    Args:
        run: the run's folder.
        budget: the run's limits.
        stateful: the run's own callbacks with a state of JSON types, by name. States of user
            callbacks are saved by `UserCallbackStates`.
        weight_averages: averages of weights, by name.
        validation_schedule: if a validation is due, the checkpoint is saved after it.
        interval: optimizer steps between checkpoints; None: at each validation, and in between
            as often as saving takes 2 % of the time.
        fingerprint: see `dataset_fingerprint`.
        resume_from: the checkpoint to restore.
    """

    def __init__(
        self,
        run: Path,
        budget: Budget,
        *,
        stateful: Mapping[str, L.Callback],
        weight_averages: Mapping[str, Ema | CheckpointAverage],
        validation_schedule: ValidationSchedule,
        interval: int | None = None,
        fingerprint: dict[str, Any] | None = None,
        resume_from: Path | None = None,
    ) -> None:
        self.run, self.budget, self.resume_from = run, budget, resume_from
        self.stateful, self.weight_averages = stateful, weight_averages
        self.validation_schedule = validation_schedule
        self.interval, self.fingerprint = interval, fingerprint or {}
        self.callback_states = UserCallbackStates(stateful.values())
        self.last_checkpoint: Path | None = None
        self._last_saved_key: tuple[Any, ...] | None = None  # of the last checkpoint
        self._snapshot: dict[str, Any] = {}
        self._next_save_seconds = 0.0  # on the budget's clock

    # Restoring, in the order of a run.

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if stage == "fit" and self.resume_from is not None:
            metadata = read_checkpoint_metadata(self.resume_from)
            trainer.datamodule.load_state_dict(metadata["data"])  # type: ignore[attr-defined]
            self.callback_states.restore(
                trainer, metadata.get("callback_states", []), self.resume_from
            )

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.resume_from is not None:
            self._restore(trainer, module, self.resume_from)

    def _restore(self, trainer: L.Trainer, module: Any, folder: Path) -> None:
        """Restores the state in the checkpoint, other than RNG states."""
        metadata = read_checkpoint_metadata(folder)
        optimizer = trainer.optimizers[0]
        tensors = _with_prefix("model", module.model.state_dict())
        tensors |= allocate_optimizer_state(module.model, optimizer, metadata["optimizer"])
        for name, average in self.weight_averages.items():
            average.set_extra_state(metadata["averages"][name])
            tensors |= _with_prefix(f"averages.{name}", average.state_tensors())
        with torch.no_grad():
            load_checkpoint_tensors(folder, tensors)
        for name, callback in self.stateful.items():
            if name in metadata["callbacks"]:  # earlier versions had fewer callbacks
                callback.load_state_dict(metadata["callbacks"][name])
        self.budget.start(**metadata["budget"])
        module.tokens, module.padding = metadata["tokens"]
        set_global_step(trainer, metadata["step"])
        self._snapshot = {name: metadata[name] for name in ("step", "data", "tokens")}
        self._snapshot["callback_states"] = self.callback_states.collect(trainer)
        self.last_checkpoint = folder

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.callback_states.collect(trainer, strict=True)
        if self.resume_from is not None:
            # Restored last: other callbacks may draw random numbers in `on_train_start`.
            self._restore_rng_state(trainer, self.resume_from)
            if self.validation_schedule.pending:
                run_validation(trainer)  # which was interrupted
        else:
            _seed_rank(trainer)
        self._next_save_seconds = self.budget.seconds + _MIN_SAVE_INTERVAL

    def _restore_rng_state(self, trainer: L.Trainer, folder: Path) -> None:
        metadata = read_checkpoint_metadata(folder)
        states = metadata["random"]
        if trainer.world_size == len(states):
            set_rng_state(states[trainer.global_rank])
        else:  # another number of ranks: no bit-exact resume
            _seed_rank(trainer, metadata["step"])
        self._snapshot["random"] = get_rng_state()

    # Saving.

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if not module.between_steps:
            return
        self.take_snapshot(trainer, module, batch)
        if self.validation_schedule.pending:
            return
        if self.interval is not None:
            due = trainer.global_step % self.interval == 0
        else:
            due = self.budget.seconds >= self._next_save_seconds
        if due:
            self.save(trainer, module)

    def take_snapshot(self, trainer: L.Trainer, module: Any, batch: dict[str, Any]) -> None:
        """Records the state that changes before the checkpoint of this step is saved."""
        self._snapshot = {
            "step": trainer.global_step,
            "data": batch.get("about", {}).get("state"),
            "random": get_rng_state(),
            "tokens": [module.tokens, module.padding],
            "callback_states": self.callback_states.collect(trainer),
        }

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            if self._snapshot:
                self._snapshot["callback_states"] = self.callback_states.collect(trainer)
            self.save(trainer, module)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        if isinstance(exception, TrainingInterrupted | SIGTERMException):
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.save(trainer, module)

    def save(self, trainer: L.Trainer, module: Any) -> None:
        """Saves the state after the last optimizer step, unless it is saved already.

        Raises:
            UserError: the loss is NaN or infinite, or the disk is full. Earlier checkpoints stay.
        """
        if not self._snapshot or self._snapshot["data"] is None:
            return
        module.nan_check.check(self._snapshot["step"], now=True)
        tensors, metadata = self._collect_state(trainer, module)
        key = metadata["step"], str(metadata["callbacks"]), str(metadata["callback_states"])
        if key == self._last_saved_key:
            return
        start_time = time.monotonic()
        self.last_checkpoint = write_checkpoint(self.run, metadata["step"], tensors, metadata)
        self._last_saved_key = key
        interval = max(_MIN_SAVE_INTERVAL, (time.monotonic() - start_time) / _MAX_SAVE_OVERHEAD)
        self._next_save_seconds = self.budget.seconds + interval

    def _collect_state(
        self, trainer: L.Trainer, module: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state after the last optimizer step: tensors by name, and the rest as JSON.

        Prefixes of tensor names: `model.`, `optimizer.`, `averages.` or `callbacks.`.
        """
        callback_states: CallbackStates = self._snapshot["callback_states"]
        metadata = {
            **self._snapshot,
            "callback_states": all_gather_object(callback_states.values),
            "budget": self.budget.state_dict(),
            "random": all_gather_object(self._snapshot["random"]),
            "callbacks": {name: callback.state_dict() for name, callback in self.stateful.items()},
            "averages": {
                name: average.get_extra_state() for name, average in self.weight_averages.items()
            },
            "facts": self.fingerprint,
            "version": miniformer.__version__,
            "torch": torch.__version__,
        }
        tensors, metadata["optimizer"] = optimizer_state(module.model, trainer.optimizers[0])
        tensors |= _with_prefix("model", module.model.state_dict())
        for name, average in self.weight_averages.items():
            tensors |= _with_prefix(f"averages.{name}", average.state_tensors())
        tensors |= callback_states.tensors
        return tensors, metadata


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def _seed_rank(trainer: L.Trainer, offset: int = 0) -> None:
    """Seeds dropout differently on each rank, after equal initialization on all ranks."""
    if trainer.world_size > 1:
        torch.manual_seed(torch.initial_seed() + 1_000_003 * trainer.global_rank + offset)
