"""Everything that the next step of a run depends on, kept so that the run can go on from there."""

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

_MAX_SAVE_OVERHEAD = 0.02  # of the time that writing states may take
_MIN_SAVE_INTERVAL = 30.0  # between two states at least, where nothing else asks for one


class Stateful(Protocol):
    """A callback with a state, in plain JSON types."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class WeightAverages(Protocol):
    """Averages of weights: see `averaging`."""

    def state_tensors(self) -> dict[str, Tensor]: ...
    def get_extra_state(self) -> dict[str, Any]: ...
    def set_extra_state(self, state: dict[str, Any]) -> None: ...


class ResumeCheckpoint(L.Callback):
    """Writes the state of a run, and brings one back.

    A state is always that after an optimiser step. What is random, and where the data is, is noted
    after each; so a run that is stopped in the middle of a step can still keep its last one.

    Args:
        run: the run's folder.
        budget: the run's limits.
        remembering: callbacks of the run itself that have a state, by name; those of others are
            kept, too, see `StatesOfOthers`.
        averages: averages of weights, by name.
        validate: says whether a validation follows now; the state is then written after it.
        interval: optimiser steps between two states; None: with each validation, and in between
            so often that writing takes 2 % of the time.
        facts: what must be the same when the run goes on, such as the size of its data.
        start: a state to begin with.
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
        self.stateful, self.weight_averages, self.validation_schedule = (
            stateful,
            weight_averages,
            validation_schedule,
        )
        self.interval, self.fingerprint = interval, fingerprint or {}
        self.callback_states = UserCallbackStates(stateful.values())
        self.last_checkpoint: Path | None = None
        self._last_saved_key: tuple[Any, ...] | None = None  # what was written last
        self._snapshot: dict[str, Any] = {}
        self._next_save_seconds = 0.0  # on the budget's clock
        self._step = 0

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if stage == "fit" and self.resume_from is not None:
            about = read_checkpoint_metadata(self.resume_from)
            if about.get("facts") != self.fingerprint:
                raise UserError(
                    f"resume: the data of {self.run} has changed since: it was "
                    f"{about.get('facts')}, it is {self.fingerprint}; begin a new run"
                )
            trainer.datamodule.load_state_dict(about["data"])  # type: ignore[attr-defined]
            self.callback_states.restore(
                trainer, about.get("callback_states", []), self.resume_from
            )

    def restore(self, trainer: L.Trainer, module: Any) -> None:
        """Brings everything back but chance; see `RestoreState`."""
        if self.resume_from is not None:
            self._restore(trainer, module, self.resume_from)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.callback_states.check_serializable(trainer)
        if self.resume_from is not None:
            # Only now: other callbacks may draw random numbers as they begin.
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
        if step == self._step:  # in the middle of one
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
        """Notes all that will have changed by the time the state after this step is written."""
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
        """Writes the state after the last optimiser step, unless it is written already.

        Raises:
            UserError: the loss is not finite, or there is no room. What was written before stays.
        """
        if not self._snapshot or self._snapshot["data"] is None:
            return
        module.nan_check.check(self._snapshot["step"], now=True)
        tensors, about = self.collect_state(trainer, module)
        now = (about["step"], str(about["callbacks"]), str(about["callback_states"]))
        if now == self._last_saved_key:
            return
        began = time.monotonic()
        self.last_checkpoint = write_checkpoint(self.run, about["step"], tensors, about)
        self._last_saved_key = now
        took = time.monotonic() - began
        self._next_save_seconds = self.budget.seconds + max(
            _MIN_SAVE_INTERVAL, took / _MAX_SAVE_OVERHEAD
        )

    def collect_state(
        self, trainer: L.Trainer, module: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state after the last optimiser step: tensors by name, and the rest as JSON.

        Names of tensors begin with `model.`, `optimizer.`, `averages.` or `callbacks.`.
        """
        taken: CallbackStates = self._snapshot["callback_states"]
        about = {
            **self._snapshot,
            "callback_states": _all_gather_object(taken.values),
            "budget": self.budget.state_dict(),
            "random": _all_gather_object(_rng_state_to_json(self._snapshot["random"])),
            "callbacks": {name: each.state_dict() for name, each in self.stateful.items()},
            "averages": {
                name: each.get_extra_state() for name, each in self.weight_averages.items()
            },
            "facts": self.fingerprint,
            "version": miniformer.__version__,
            "torch": torch.__version__,
        }
        tensors, about["optimizer"] = _optimizer_state(module.model, trainer.optimizers[0])
        tensors |= _with_prefix("model", module.model.state_dict())
        for name, each in self.weight_averages.items():
            tensors |= _with_prefix(f"averages.{name}", each.state_tensors())
        tensors |= taken.tensors
        return tensors, about

    def _restore(self, trainer: L.Trainer, module: Any, folder: Path) -> None:
        about = read_checkpoint_metadata(folder)
        optimizer = trainer.optimizers[0]
        tensors = _with_prefix("model", module.model.state_dict())
        tensors |= _allocate_optimizer_state(module.model, optimizer, about["optimizer"])
        for name, each in self.weight_averages.items():
            each.set_extra_state(about["averages"][name])
            tensors |= _with_prefix(f"averages.{name}", each.state_tensors())
        with torch.no_grad():
            load_checkpoint_tensors(folder, tensors)
        for name, remembering in self.stateful.items():
            remembering.load_state_dict(about["callbacks"][name])
        self.budget.start(**about["budget"])
        module.tokens, module.padding = about["tokens"]
        self._step = about["step"]
        # Lightning counts the steps of hand-made optimisation here; `global_step` reads it.
        steps = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        steps.ready = steps.completed = about["step"]
        self._snapshot = {name: about[name] for name in ("step", "data", "tokens")}
        self._snapshot["callback_states"] = self.callback_states.collect(trainer)
        self.last_checkpoint = folder

    def _restore_rng_state(self, trainer: L.Trainer, folder: Path) -> None:
        about = read_checkpoint_metadata(folder)
        states = about["random"]
        if trainer.world_size == len(states):
            _set_rng_state(states[trainer.global_rank])
        else:  # on other devices than before nothing can be the same, bit for bit
            _seed_rank(trainer, about["step"])
        self._snapshot["random"] = get_rng_state()


class RestoreCheckpoint(L.Callback):
    """Brings back a run's state before other callbacks begin, which `KeepState` is behind.

    Args:
        states: knows the state.
    """

    def __init__(self, checkpoint: ResumeCheckpoint) -> None:
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.checkpoint.restore(trainer, module)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def _optimizer_state(model: Any, optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an optimiser by name, and the rest of its state as JSON."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {"tensors": {}, "values": {}, "groups": []}
    for name, parameter in _named_optimizer_parameters(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
                about["tensors"].setdefault(name, {})[key] = tensor_spec(value)
            else:
                about["values"].setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        plain = {key: value for key, value in group.items() if isinstance(value, int | float)}
        about["groups"].append(plain)
    return tensors, about


def _allocate_optimizer_state(
    model: Any, optimizer: Any, metadata: dict[str, Any]
) -> dict[str, Tensor]:
    """Gives an optimiser the state that was described, with empty tensors; returns these."""
    tensors = {}
    for name, parameter in _named_optimizer_parameters(model, optimizer):
        state = dict(metadata["values"].get(name, {}))
        for key, described in metadata["tensors"].get(name, {}).items():
            state[key] = tensors[f"optimizer.{name}.{key}"] = empty_from_spec(described, parameter)
        if state:
            optimizer.state[parameter] = state
    for group, plain in zip(optimizer.param_groups, metadata["groups"], strict=True):
        group.update(plain)
    return tensors


def _named_optimizer_parameters(model: Any, optimizer: Any) -> list[tuple[str, Tensor]]:
    """An optimiser's parameters, each with the name that it has in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = getattr(optimizer, "_optimizer", optimizer)
    return [
        (names.get(id(parameter), f"{i}.{j}"), parameter)
        for i, group in enumerate(optimizer.param_groups)
        for j, parameter in enumerate(group["params"])
    ]


def get_rng_state() -> dict[str, Any]:
    """Where every source of chance is."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _rng_state_to_json(state: dict[str, Any]) -> dict[str, Any]:
    kind, keys, *more = state["numpy"]
    told = {"numpy": [kind, _encode_base64(keys), *more], "python": state["python"]}
    return told | {
        name: _encode_base64(state[name].numpy()) for name in ("torch", "cuda") if name in state
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(_decode_base64(state["torch"]))
    kind, keys, *more = state["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), np.uint32), *more))
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
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _seed_rank(trainer: L.Trainer, offset: int = 0) -> None:
    """Different dropout on each device; weights are drawn before, alike on all of them."""
    if trainer.world_size > 1:
        torch.manual_seed(torch.initial_seed() + 1_000_003 * trainer.global_rank + offset)
