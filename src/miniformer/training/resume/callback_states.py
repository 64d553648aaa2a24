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
from miniformer.training.resume.storage import load_checkpoint_tensors

_TYPE_KEY = "__kind__"  # of a value that JSON has no notation for


class CallbackStates(NamedTuple):
    """The states of all callbacks of this process after a step.

    Attributes:
        values: JSON by callback.
        tensors: that `values` name, as bytes.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]


class NotSerializableError(ValueError):
    """A value that cannot be saved; its text says where it is and what."""


class UserCallbackStates:
    """Keeps and restores the `state_dict` of each callback of a Trainer.

    Each process has its own, as its callbacks see its own batches. The name of a state is
    Lightning's `state_key` of the callback; of several callbacks with the same one, the second has
    `#2` behind it, and so on.

    Args:
        own: callbacks that are left out.
    """

    def __init__(self, excluded: Iterable[Any]) -> None:
        self._excluded = list(excluded)
        self._warned: set[str] = set()

    def check_serializable(self, trainer: L.Trainer) -> None:
        """Tries to take the states before anything is learnt.

        Raises:
            UserError: one cannot be saved.
        """
        for name, callback in self._callbacks_by_key(trainer).items():
            try:
                _encode(callback.state_dict(), "", name, {})
            except NotSerializableError as error:
                raise UserError(_serialization_message(name, error)) from None

    def collect(self, trainer: L.Trainer) -> CallbackStates:
        """The states as they are now; one that cannot be saved is left out with a warning."""
        values: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, callback in self._callbacks_by_key(trainer).items():
            state = callback.state_dict()
            if not state:
                continue
            found: dict[str, Tensor] = {}
            try:
                values[name] = _encode(state, "", f"callbacks.{_rank()}.{name}", found)
            except NotSerializableError as error:
                self._warn_once(
                    f"{_serialization_message(name, error)}; a resumed run begins with it anew"
                )
                continue
            tensors |= found
        return CallbackStates(values, tensors)

    def restore(
        self, trainer: L.Trainer, saved: list[dict[str, Any]], checkpoint_dir: Path
    ) -> None:
        """Gives each callback the state that it had.

        Args:
            trainer: its callbacks have been set up, and have not begun.
            saved: values of `CallbackStates` of each process.
            folder: the state of the run, with the tensors.
        """
        # On other devices than before each process begins with what the first one had.
        mine = saved[_rank() if len(saved) == trainer.world_size else 0] if saved else {}
        into: dict[str, Tensor] = {}
        states = {name: _decode(values, into) for name, values in mine.items()}
        if any(_has_tensors(values) for values in saved):  # all processes read together
            load_checkpoint_tensors(checkpoint_dir, into)
        named = self._callbacks_by_key(trainer)
        for name, state in states.items():
            if name in named:
                named[name].load_state_dict(_materialize(state))
            else:
                self._warn_once(
                    f"the run has a state of the callback {name}, which is not among the callbacks "
                    "now; it is left out"
                )
        for name, callback in named.items():
            if name not in states and callback.state_dict():
                self._warn_once(f"the run has no state of the callback {name}; it begins anew")

    def _callbacks_by_key(self, trainer: L.Trainer) -> dict[str, L.Callback]:
        named: dict[str, L.Callback] = {}
        counts: dict[str, int] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if any(callback is each for each in self._excluded):
                continue
            key = callback.state_key
            counts[key] = counts.get(key, 0) + 1
            named[key if counts[key] == 1 else f"{key}#{counts[key]}"] = callback
        return named

    def _warn_once(self, message: str) -> None:
        if message not in self._warned and _rank() == 0:
            warnings.warn(message, stacklevel=2)
        self._warned.add(message)


def _serialization_message(name: str, error: NotSerializableError) -> str:
    return (
        f"the callback {name} has a state that cannot be saved: state_dict(){error}; "
        "give numbers, texts, lists, dicts, arrays or tensors"
    )


def _encode(value: Any, path: str, prefix: str, tensors: dict[str, Tensor]) -> Any:
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
        return {_TYPE_KEY: "number", "of": _encode(np.asarray(value), path, prefix, tensors)}
    if value is None or isinstance(value, bool | int | float | str):
        return value

    def encode_item(value: Any, key: Any) -> Any:
        return _encode(value, f"{path}[{key!r}]", prefix, tensors)

    if type(value) is list:
        return [encode_item(each, number) for number, each in enumerate(value)]
    if type(value) is tuple:
        return {_TYPE_KEY: "tuple", "items": [encode_item(each, i) for i, each in enumerate(value)]}
    if type(value) is dict:
        if all(type(key) is str and key != _TYPE_KEY for key in value):
            return {key: encode_item(each, key) for key, each in value.items()}
        # JSON would make texts of other keys.
        pairs = [[encode_item(key, "key"), encode_item(each, key)] for key, each in value.items()]
        return {_TYPE_KEY: "dict", "items": pairs}
    if type(value) is bytes:
        return {_TYPE_KEY: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        given = torch.from_numpy(value.copy())
        return {**_encode(given, path, prefix, tensors), _TYPE_KEY: "array"}
    if isinstance(value, Tensor) and not isinstance(value, DTensor) and not value.is_sparse:
        name = f"{prefix}.{len(tensors)}"
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            tensors[name] = flat.view(torch.uint8).clone()
        dtype = str(value.dtype).removeprefix("torch.")
        return {_TYPE_KEY: "tensor", "name": name, "dtype": dtype, "shape": list(value.shape)}
    kind = type(value)
    raise NotSerializableError(f"{path} is of type {kind.__module__}.{kind.__qualname__}")


class _PendingTensor(NamedTuple):
    """A tensor whose bytes are still to be read."""

    buffer: Tensor
    dtype: torch.dtype
    shape: list[int]
    kind: str


def _decode(value: Any, buffers: dict[str, Tensor]) -> Any:
    """What `_encoded` was given, with tensors that are still to be read into `into`."""
    if isinstance(value, list):
        return [_decode(each, buffers) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TYPE_KEY)
    if kind is None:
        return {key: _decode(each, buffers) for key, each in value.items()}
    if kind == "tuple":
        return tuple(_decode(each, buffers) for each in value["items"])
    if kind == "dict":
        return {_decode(key, buffers): _decode(each, buffers) for key, each in value["items"]}
    if kind == "bytes":
        return base64.b64decode(value["base64"])
    if kind == "number":
        return _decode(value["of"], buffers)._replace(kind="number")
    dtype = getattr(torch, value["dtype"])
    count = int(np.prod(value["shape"], dtype=np.int64)) * dtype.itemsize
    found = torch.empty(count, dtype=torch.uint8)
    if count:
        buffers[value["name"]] = found
    return _PendingTensor(found, dtype, value["shape"], kind)


def _materialize(value: Any) -> Any:
    """A decoded value once its tensors are read."""
    if isinstance(value, _PendingTensor):
        tensor = value.buffer.view(value.dtype).reshape(value.shape)
        if value.kind == "tensor":
            return tensor
        return tensor.numpy() if value.kind == "array" else tensor.numpy()[()]
    if isinstance(value, list | tuple):
        return type(value)(_materialize(each) for each in value)
    if isinstance(value, dict):
        return {key: _materialize(each) for key, each in value.items()}
    return value


def _has_tensors(value: Any) -> bool:
    """Whether a JSON value of `_encoded` names tensors."""
    if isinstance(value, list):
        return any(map(_has_tensors, value))
    if not isinstance(value, dict):
        return False
    if value.get(_TYPE_KEY) in ("tensor", "array"):
        return 0 not in value["shape"]
    return any(map(_has_tensors, value.values()))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
