"""States of a user's callbacks: plain JSON and tensors, with nothing pickled."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from miniformer.config import UserError
from miniformer.training.checkpoints import read_tensors

_KIND = "__kind__"  # of a value that JSON has no notation for


class CallbackStates(NamedTuple):
    """The states of all callbacks of this process after a step.

    Attributes:
        values: JSON by callback.
        tensors: that `values` name, as bytes.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]


class NotPlain(ValueError):
    """A value that cannot be saved; its text says where it is and what."""


class StatesOfOthers:
    """Keeps and restores the `state_dict` of each callback of a Trainer.

    Each process has its own, as its callbacks see its own batches. The name of a state is
    Lightning's `state_key` of the callback; of several callbacks with the same one, the second has
    `#2` behind it, and so on.

    Args:
        own: callbacks that are left out.
    """

    def __init__(self, own: Iterable[Any]) -> None:
        self._own = list(own)
        self._told: set[str] = set()

    def check(self, trainer: L.Trainer) -> None:
        """Tries to take the states before anything is learnt.

        Raises:
            UserError: one cannot be saved.
        """
        for name, callback in self._named(trainer).items():
            try:
                _encoded(callback.state_dict(), "", name, {})
            except NotPlain as error:
                raise UserError(_message(name, error)) from None

    def take(self, trainer: L.Trainer) -> CallbackStates:
        """The states as they are now; one that cannot be saved is left out with a warning."""
        values: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, callback in self._named(trainer).items():
            state = callback.state_dict()
            if not state:
                continue
            found: dict[str, Tensor] = {}
            try:
                values[name] = _encoded(state, "", f"callbacks.{_rank()}.{name}", found)
            except NotPlain as error:
                self._warn(f"{_message(name, error)}; a resumed run begins with it anew")
                continue
            tensors |= found
        return CallbackStates(values, tensors)

    def load(self, trainer: L.Trainer, saved: list[dict[str, Any]], folder: Path) -> None:
        """Gives each callback the state that it had.

        Args:
            trainer: its callbacks have been set up, and have not begun.
            saved: values of `CallbackStates` of each process.
            folder: the state of the run, with the tensors.
        """
        # On other devices than before each process begins with what the first one had.
        mine = saved[_rank() if len(saved) == trainer.world_size else 0] if saved else {}
        into: dict[str, Tensor] = {}
        states = {name: _decoded(values, into) for name, values in mine.items()}
        if any(_has_tensors(values) for values in saved):  # all processes read together
            read_tensors(folder, into)
        named = self._named(trainer)
        for name, state in states.items():
            if name in named:
                named[name].load_state_dict(_whole(state))
            else:
                self._warn(
                    f"the run has a state of the callback {name}, which is not among the callbacks "
                    "now; it is left out"
                )
        for name, callback in named.items():
            if name not in states and callback.state_dict():
                self._warn(f"the run has no state of the callback {name}; it begins anew")

    def _named(self, trainer: L.Trainer) -> dict[str, L.Callback]:
        named: dict[str, L.Callback] = {}
        counts: dict[str, int] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if any(callback is each for each in self._own):
                continue
            key = callback.state_key
            counts[key] = counts.get(key, 0) + 1
            named[key if counts[key] == 1 else f"{key}#{counts[key]}"] = callback
        return named

    def _warn(self, message: str) -> None:
        if message not in self._told and _rank() == 0:
            warnings.warn(message, stacklevel=2)
        self._told.add(message)


def _message(name: str, error: NotPlain) -> str:
    return (
        f"the callback {name} has a state that cannot be saved: state_dict(){error}; "
        "give numbers, texts, lists, dicts, arrays or tensors"
    )


def _encoded(value: Any, where: str, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors are copied, as bytes.

    Args:
        value: of plain types, tensors and arrays.
        where: it is in the state, such as `['losses'][3]`, for an error.
        prefix: of the names of tensors.
        tensors: takes the tensors.

    Raises:
        NotPlain: it holds something else.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {_KIND: "number", "of": _encoded(np.asarray(value), where, prefix, tensors)}
    if value is None or isinstance(value, bool | int | float | str):
        return value

    def inner(value: Any, key: Any) -> Any:
        return _encoded(value, f"{where}[{key!r}]", prefix, tensors)

    if type(value) is list:
        return [inner(each, number) for number, each in enumerate(value)]
    if type(value) is tuple:
        return {_KIND: "tuple", "items": [inner(each, i) for i, each in enumerate(value)]}
    if type(value) is dict:
        if all(type(key) is str and key != _KIND for key in value):
            return {key: inner(each, key) for key, each in value.items()}
        # JSON would make texts of other keys.
        pairs = [[inner(key, "key"), inner(each, key)] for key, each in value.items()]
        return {_KIND: "dict", "items": pairs}
    if type(value) is bytes:
        return {_KIND: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        given = torch.from_numpy(value.copy())
        return {**_encoded(given, where, prefix, tensors), _KIND: "array"}
    if isinstance(value, Tensor) and not isinstance(value, DTensor) and not value.is_sparse:
        name = f"{prefix}.{len(tensors)}"
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            tensors[name] = flat.view(torch.uint8).clone()
        dtype = str(value.dtype).removeprefix("torch.")
        return {_KIND: "tensor", "name": name, "dtype": dtype, "shape": list(value.shape)}
    kind = type(value)
    raise NotPlain(f"{where} is of type {kind.__module__}.{kind.__qualname__}")


class _Pending(NamedTuple):
    """A tensor whose bytes are still to be read."""

    bytes: Tensor
    dtype: torch.dtype
    shape: list[int]
    kind: str


def _decoded(value: Any, into: dict[str, Tensor]) -> Any:
    """What `_encoded` was given, with tensors that are still to be read into `into`."""
    if isinstance(value, list):
        return [_decoded(each, into) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: _decoded(each, into) for key, each in value.items()}
    if kind == "tuple":
        return tuple(_decoded(each, into) for each in value["items"])
    if kind == "dict":
        return {_decoded(key, into): _decoded(each, into) for key, each in value["items"]}
    if kind == "bytes":
        return base64.b64decode(value["base64"])
    if kind == "number":
        return _decoded(value["of"], into)._replace(kind="number")
    dtype = getattr(torch, value["dtype"])
    count = int(np.prod(value["shape"], dtype=np.int64)) * dtype.itemsize
    found = torch.empty(count, dtype=torch.uint8)
    if count:
        into[value["name"]] = found
    return _Pending(found, dtype, value["shape"], kind)


def _whole(value: Any) -> Any:
    """A decoded value once its tensors are read."""
    if isinstance(value, _Pending):
        tensor = value.bytes.view(value.dtype).reshape(value.shape)
        if value.kind == "tensor":
            return tensor
        return tensor.numpy() if value.kind == "array" else tensor.numpy()[()]
    if isinstance(value, list | tuple):
        return type(value)(_whole(each) for each in value)
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return value


def _has_tensors(value: Any) -> bool:
    """Whether a JSON value of `_encoded` names tensors."""
    if isinstance(value, list):
        return any(map(_has_tensors, value))
    if not isinstance(value, dict):
        return False
    if value.get(_KIND) in ("tensor", "array"):
        return 0 not in value["shape"]
    return any(map(_has_tensors, value.values()))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
