"""Checkpoints of a run for resuming: all state that the next step depends on."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

import miniformer
from miniformer.config import UserError
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.interrupt import TrainingInterrupted
from miniformer.training.callbacks.validation import ValidationSchedule
from miniformer.training.resume.callback_states import CallbackStates, UserCallbackStates
from miniformer.training.resume.storage import (
    empty_from_spec,
    load_checkpoint_tensors,
    read_checkpoint_metadata,
    tensor_spec,
    write_checkpoint,
)

_MAX_SAVE_OVERHEAD = 0.02  # fraction of the time spent on saving checkpoints
_MIN_SAVE_INTERVAL = 30.0  # minimum seconds between two checkpoints without `interval`


class Stateful(Protocol):
    """A callback whose state consists of JSON types."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class WeightAverages(Protocol):
    """Averages of weights, such as `Ema` and `CheckpointAverage`."""

    def state_tensors(self) -> dict[str, Tensor]: ...
    def get_extra_state(self) -> dict[str, Any]: ...
    def set_extra_state(self, state: dict[str, Any]) -> None: ...


class ResumeCheckpoint(L.Callback):
    """Saves checkpoints of a run and restores one.

    A checkpoint always holds the state after an optimizer step. A snapshot of the RNG state and
    the position in the data is taken after each step, so a run that is interrupted within a step
    can still save the last one.

    Args:
        run: the run's folder.
        budget: the run's limits.
        stateful: the run's own callbacks with a state, by name. States of user callbacks are
            saved by `UserCallbackStates`.
        weight_averages: averages of weights, by name.
        validation_schedule: if a validation is due, the checkpoint is saved after it.
        interval: optimizer steps between checkpoints; None: at each validation, and in between
            as often as saving takes 2 % of the time.
        fingerprint: values that must be equal when the run is resumed, such as the data size.
        resume_from: the checkpoint to restore.
    """

    def __init__(
        self,
        run: Path,
        budget: Budget,
        *,
        stateful: Mapping[str, Stateful],
        weight_averages: Mapping[str, WeightAverages],
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
        self._step = 0

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if stage == "fit" and self.resume_from is not None:
            metadata = read_checkpoint_metadata(self.resume_from)
            if metadata.get("facts") != self.fingerprint:
                raise UserError(
                    f"resume: the data of {self.run} has changed: it was "
                    f"{metadata.get('facts')}, it is {self.fingerprint}; start a new run"
                )
            trainer.datamodule.load_state_dict(metadata["data"])  # type: ignore[attr-defined]
            self.callback_states.restore(
                trainer, metadata.get("callback_states", []), self.resume_from
            )

    def restore(self, trainer: L.Trainer, module: Any) -> None:
        """Restores everything but the RNG state; called by `RestoreCheckpoint`."""
        if self.resume_from is not None:
            self._restore(trainer, module, self.resume_from)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.callback_states.check_serializable(trainer)
        if self.resume_from is not None:
            # Restored last: other callbacks may draw random numbers in `on_train_start`.
            self._restore_rng_state(trainer, self.resume_from)
            if self.validation_schedule.pending:
                self.validation_schedule.run_validation(trainer)
        else:
            _seed_rank(trainer)
        self._next_save_seconds = self.budget.seconds + _MIN_SAVE_INTERVAL

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # between gradient accumulation steps
            return
        self.take_snapshot(trainer, module, batch)
        if self.validation_schedule.pending:
            return
        if self.interval is not None:
            due = step % self.interval == 0
        else:
            due = self.budget.seconds >= self._next_save_seconds
        if due:
            self.save(trainer, module)

    def take_snapshot(self, trainer: L.Trainer, module: Any, batch: dict[str, Any]) -> None:
        """Records the state that changes before the checkpoint of this step is saved."""
        self._step = step = trainer.global_step
        self._snapshot = {
            "step": step,
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
        tensors, metadata = self.collect_state(trainer, module)
        key = metadata["step"], str(metadata["callbacks"]), str(metadata["callback_states"])
        if key == self._last_saved_key:
            return
        start_time = time.monotonic()
        self.last_checkpoint = write_checkpoint(self.run, metadata["step"], tensors, metadata)
        self._last_saved_key = key
        interval = max(_MIN_SAVE_INTERVAL, (time.monotonic() - start_time) / _MAX_SAVE_OVERHEAD)
        self._next_save_seconds = self.budget.seconds + interval

    def collect_state(
        self, trainer: L.Trainer, module: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state after the last optimizer step: tensors by name, and the rest as JSON.

        Prefixes of tensor names: `model.`, `optimizer.`, `averages.` or `callbacks.`.
        """
        callback_states: CallbackStates = self._snapshot["callback_states"]
        metadata = {
            **self._snapshot,
            "callback_states": _all_gather_object(callback_states.values),
            "budget": self.budget.state_dict(),
            "random": _all_gather_object(_rng_state_to_json(self._snapshot["random"])),
            "callbacks": {name: callback.state_dict() for name, callback in self.stateful.items()},
            "averages": {
                name: average.get_extra_state() for name, average in self.weight_averages.items()
            },
            "facts": self.fingerprint,
            "version": miniformer.__version__,
            "torch": torch.__version__,
        }
        tensors, metadata["optimizer"] = _optimizer_state(module.model, trainer.optimizers[0])
        tensors |= _with_prefix("model", module.model.state_dict())
        for name, average in self.weight_averages.items():
            tensors |= _with_prefix(f"averages.{name}", average.state_tensors())
        tensors |= callback_states.tensors
        return tensors, metadata

    def _restore(self, trainer: L.Trainer, module: Any, folder: Path) -> None:
        metadata = read_checkpoint_metadata(folder)
        optimizer = trainer.optimizers[0]
        tensors = _with_prefix("model", module.model.state_dict())
        tensors |= _allocate_optimizer_state(module.model, optimizer, metadata["optimizer"])
        for name, average in self.weight_averages.items():
            average.set_extra_state(metadata["averages"][name])
            tensors |= _with_prefix(f"averages.{name}", average.state_tensors())
        with torch.no_grad():
            load_checkpoint_tensors(folder, tensors)
        for name, callback in self.stateful.items():
            callback.load_state_dict(metadata["callbacks"][name])
        self.budget.start(**metadata["budget"])
        module.tokens, module.padding = metadata["tokens"]
        self._step = metadata["step"]
        # Lightning's counter of steps in manual optimization, which `global_step` reads.
        steps = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        steps.ready = steps.completed = metadata["step"]
        self._snapshot = {name: metadata[name] for name in ("step", "data", "tokens")}
        self._snapshot["callback_states"] = self.callback_states.collect(trainer)
        self.last_checkpoint = folder

    def _restore_rng_state(self, trainer: L.Trainer, folder: Path) -> None:
        metadata = read_checkpoint_metadata(folder)
        states = metadata["random"]
        if trainer.world_size == len(states):
            _set_rng_state(states[trainer.global_rank])
        else:  # another number of ranks: no bit-exact resume
            _seed_rank(trainer, metadata["step"])
        self._snapshot["random"] = get_rng_state()


class RestoreCheckpoint(L.Callback):
    """Restores a checkpoint before other callbacks; `ResumeCheckpoint` itself runs last.

    Args:
        checkpoint: the callback that holds the checkpoint.
    """

    def __init__(self, checkpoint: ResumeCheckpoint) -> None:
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.checkpoint.restore(trainer, module)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def _optimizer_state(model: Any, optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an optimizer by name, and the rest of its state as JSON."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {"tensors": {}, "values": {}, "groups": []}
    for name, parameter in _named_optimizer_parameters(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
                metadata["tensors"].setdefault(name, {})[key] = tensor_spec(value)
            else:
                metadata["values"].setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        values = {key: value for key, value in group.items() if isinstance(value, int | float)}
        metadata["groups"].append(values)
    return tensors, metadata


def _allocate_optimizer_state(
    model: Any, optimizer: Any, metadata: dict[str, Any]
) -> dict[str, Tensor]:
    """Allocates an optimizer's state from its metadata; returns the empty tensors by name."""
    tensors = {}
    for name, parameter in _named_optimizer_parameters(model, optimizer):
        state = dict(metadata["values"].get(name, {}))
        for key, spec in metadata["tensors"].get(name, {}).items():
            state[key] = tensors[f"optimizer.{name}.{key}"] = empty_from_spec(spec, parameter)
        if state:
            optimizer.state[parameter] = state
    for group, values in zip(optimizer.param_groups, metadata["groups"], strict=True):
        group.update(values)
    return tensors


def _named_optimizer_parameters(model: Any, optimizer: Any) -> list[tuple[str, Tensor]]:
    """An optimizer's parameters with their names in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = getattr(optimizer, "_optimizer", optimizer)
    return [
        (names.get(id(parameter), f"{i}.{j}"), parameter)
        for i, group in enumerate(optimizer.param_groups)
        for j, parameter in enumerate(group["params"])
    ]


def get_rng_state() -> dict[str, Any]:
    """States of all random number generators."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _rng_state_to_json(state: dict[str, Any]) -> dict[str, Any]:
    kind, keys, *rest = state["numpy"]
    encoded = {"numpy": [kind, _encode_base64(keys), *rest], "python": state["python"]}
    return encoded | {
        name: _encode_base64(state[name].numpy()) for name in ("torch", "cuda") if name in state
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(_decode_base64(state["torch"]))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode_base64(state["cuda"]))


def _encode_base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _decode_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _all_gather_object(value: Any) -> list[Any]:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _seed_rank(trainer: L.Trainer, offset: int = 0) -> None:
    """Seeds dropout differently on each rank, after equal initialization on all ranks."""
    if trainer.world_size > 1:
        torch.manual_seed(torch.initial_seed() + 1_000_003 * trainer.global_rank + offset)
