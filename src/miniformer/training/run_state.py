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
from miniformer.training.budget import Budget
from miniformer.training.callback_states import CallbackStates, StatesOfOthers
from miniformer.training.callbacks import ValidateInTime
from miniformer.training.checkpoints import (
    describe,
    like,
    read_about,
    read_tensors,
    write_checkpoint,
)
from miniformer.training.interrupt import Interrupted

_SHARE = 0.02  # of the time that writing states may take
_SECONDS = 30.0  # between two states at least, where nothing else asks for one


class Remembers(Protocol):
    """A callback with a state, in plain JSON types."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Averages(Protocol):
    """Averages of weights: see `averaging`."""

    def tensors(self) -> dict[str, Tensor]: ...
    def about(self) -> dict[str, Any]: ...
    def prepare(self, about: dict[str, Any]) -> None: ...


class KeepState(L.Callback):
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
        remembering: Mapping[str, Remembers],
        averages: Mapping[str, Averages],
        validate: ValidateInTime,
        interval: int | None = None,
        facts: dict[str, Any] | None = None,
        start: Path | None = None,
    ) -> None:
        self.run, self.budget, self.start = run, budget, start
        self.remembering, self.averages, self.validate = remembering, averages, validate
        self.interval, self.facts = interval, facts or {}
        self.states = StatesOfOthers(remembering.values())
        self.written: Path | None = None
        self._last: tuple[Any, ...] | None = None  # what was written last
        self._noted: dict[str, Any] = {}
        self._due = 0.0  # on the budget's clock
        self._step = 0

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if stage == "fit" and self.start is not None:
            about = read_about(self.start)
            if about.get("facts") != self.facts:
                raise UserError(
                    f"resume: the data of {self.run} has changed since: it was "
                    f"{about.get('facts')}, it is {self.facts}; begin a new run"
                )
            trainer.datamodule.load_state_dict(about["data"])  # type: ignore[attr-defined]
            self.states.load(trainer, about.get("callback_states", []), self.start)

    def restore(self, trainer: L.Trainer, module: Any) -> None:
        """Brings everything back but chance; see `RestoreState`."""
        if self.start is not None:
            self._restore(trainer, module, self.start)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.states.check(trainer)
        if self.start is not None:
            # Only now: other callbacks may draw random numbers as they begin.
            self._restore_chance(trainer, self.start)
            if self.validate.pending:
                self.validate.run_now(trainer)
        else:
            _seed_rank(trainer)
        self._due = self.budget.seconds + _SECONDS

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # in the middle of one
            return
        self.note(trainer, module, batch)
        if self.validate.pending:
            return
        if self.interval is not None:
            due = step % self.interval == 0
        else:
            due = self.budget.seconds >= self._due
        if due:
            self.save(trainer, module)

    def note(self, trainer: L.Trainer, module: Any, batch: dict[str, Any]) -> None:
        """Notes all that will have changed by the time the state after this step is written."""
        self._step = step = trainer.global_step
        self._noted = {
            "step": step,
            "data": batch.get("about", {}).get("state"),
            "random": random_state(),
            "tokens": [module.tokens, module.padding],
            "callback_states": self.states.take(trainer),
        }

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit":
            if self._noted:
                self._noted["callback_states"] = self.states.take(trainer)
            self.save(trainer, module)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        if isinstance(exception, Interrupted | SIGTERMException):
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.save(trainer, module)

    def save(self, trainer: L.Trainer, module: Any) -> None:
        """Writes the state after the last optimiser step, unless it is written already.

        Raises:
            UserError: the loss is not finite, or there is no room. What was written before stays.
        """
        if not self._noted or self._noted["data"] is None:
            return
        module.finite.check(self._noted["step"], now=True)
        tensors, about = self.state_of(trainer, module)
        now = (about["step"], str(about["callbacks"]), str(about["callback_states"]))
        if now == self._last:
            return
        began = time.monotonic()
        self.written = write_checkpoint(self.run, about["step"], tensors, about)
        self._last = now
        took = time.monotonic() - began
        self._due = self.budget.seconds + max(_SECONDS, took / _SHARE)

    def state_of(self, trainer: L.Trainer, module: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state after the last optimiser step: tensors by name, and the rest as JSON.

        Names of tensors begin with `model.`, `optimizer.`, `averages.` or `callbacks.`.
        """
        taken: CallbackStates = self._noted["callback_states"]
        about = {
            **self._noted,
            "callback_states": _of_all_ranks(taken.values),
            "budget": self.budget.state(),
            "random": _of_all_ranks(_as_json(self._noted["random"])),
            "callbacks": {name: each.state_dict() for name, each in self.remembering.items()},
            "averages": {name: each.about() for name, each in self.averages.items()},
            "facts": self.facts,
            "version": miniformer.__version__,
            "torch": torch.__version__,
        }
        tensors, about["optimizer"] = _optimizer_state(module.model, trainer.optimizers[0])
        tensors |= _named("model", module.model.state_dict())
        for name, each in self.averages.items():
            tensors |= _named(f"averages.{name}", each.tensors())
        tensors |= taken.tensors
        return tensors, about

    def _restore(self, trainer: L.Trainer, module: Any, folder: Path) -> None:
        about = read_about(folder)
        optimizer = trainer.optimizers[0]
        tensors = _named("model", module.model.state_dict())
        tensors |= _prepare_optimizer(module.model, optimizer, about["optimizer"])
        for name, each in self.averages.items():
            each.prepare(about["averages"][name])
            tensors |= _named(f"averages.{name}", each.tensors())
        with torch.no_grad():
            read_tensors(folder, tensors)
        for name, remembering in self.remembering.items():
            remembering.load_state_dict(about["callbacks"][name])
        self.budget.start(**about["budget"])
        module.tokens, module.padding = about["tokens"]
        self._step = about["step"]
        # Lightning counts the steps of hand-made optimisation here; `global_step` reads it.
        steps = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        steps.ready = steps.completed = about["step"]
        self._noted = {name: about[name] for name in ("step", "data", "tokens")}
        self._noted["callback_states"] = self.states.take(trainer)
        self.written = folder

    def _restore_chance(self, trainer: L.Trainer, folder: Path) -> None:
        about = read_about(folder)
        states = about["random"]
        if trainer.world_size == len(states):
            _set_random_state(states[trainer.global_rank])
        else:  # on other devices than before nothing can be the same, bit for bit
            _seed_rank(trainer, about["step"])
        self._noted["random"] = random_state()


class RestoreState(L.Callback):
    """Brings back a run's state before other callbacks begin, which `KeepState` is behind.

    Args:
        states: knows the state.
    """

    def __init__(self, states: KeepState) -> None:
        self.states = states

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.states.restore(trainer, module)


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def _optimizer_state(model: Any, optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an optimiser by name, and the rest of its state as JSON."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {"tensors": {}, "values": {}, "groups": []}
    for name, parameter in _parameters(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
                about["tensors"].setdefault(name, {})[key] = describe(value)
            else:
                about["values"].setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        plain = {key: value for key, value in group.items() if isinstance(value, int | float)}
        about["groups"].append(plain)
    return tensors, about


def _prepare_optimizer(model: Any, optimizer: Any, about: dict[str, Any]) -> dict[str, Tensor]:
    """Gives an optimiser the state that was described, with empty tensors; returns these."""
    tensors = {}
    for name, parameter in _parameters(model, optimizer):
        state = dict(about["values"].get(name, {}))
        for key, described in about["tensors"].get(name, {}).items():
            state[key] = tensors[f"optimizer.{name}.{key}"] = like(described, parameter)
        if state:
            optimizer.state[parameter] = state
    for group, plain in zip(optimizer.param_groups, about["groups"], strict=True):
        group.update(plain)
    return tensors


def _parameters(model: Any, optimizer: Any) -> list[tuple[str, Tensor]]:
    """An optimiser's parameters, each with the name that it has in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = getattr(optimizer, "_optimizer", optimizer)
    return [
        (names.get(id(parameter), f"{i}.{j}"), parameter)
        for i, group in enumerate(optimizer.param_groups)
        for j, parameter in enumerate(group["params"])
    ]


def random_state() -> dict[str, Any]:
    """Where every source of chance is."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _as_json(state: dict[str, Any]) -> dict[str, Any]:
    kind, keys, *more = state["numpy"]
    told = {"numpy": [kind, _text(keys), *more], "python": state["python"]}
    return told | {name: _text(state[name].numpy()) for name in ("torch", "cuda") if name in state}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(_bytes(state["torch"]))
    kind, keys, *more = state["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), np.uint32), *more))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _of_all_ranks(value: Any) -> list[Any]:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _seed_rank(trainer: L.Trainer, more: int = 0) -> None:
    """Different dropout on each device; weights are drawn before, alike on all of them."""
    if trainer.world_size > 1:
        torch.manual_seed(torch.initial_seed() + 1_000_003 * trainer.global_rank + more)
