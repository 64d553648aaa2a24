"""States of user callbacks in a checkpoint: JSON and tensors, without pickle."""

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

_TYPE_KEY = "__kind__"  # marks values of types that JSON lacks


class CallbackStates(NamedTuple):
    """The states of all user callbacks of this rank after a step.

    Attributes:
        values: JSON values by callback.
        tensors: the tensors that `values` refer to by name, as bytes.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]


class NotSerializableError(ValueError):
    """A value cannot be saved; the message names its path and type."""


class UserCallbackStates:
    """Collects and restores the `state_dict` of each callback of a Trainer.

    Each rank has its own states, since its callbacks get its own batches. The name of a state is
    Lightning's `state_key` of the callback. Further callbacks with the same key get the suffixes
    `#2`, `#3`, ...

    Args:
        excluded: callbacks whose states are not collected.
    """

    def __init__(self, excluded: Iterable[Any]) -> None:
        self._excluded = list(excluded)
        self._warned: set[str] = set()

    def check_serializable(self, trainer: L.Trainer) -> None:
        """Checks before training that all states can be saved.

        Raises:
            UserError: a state cannot be saved.
        """
        for name, callback in self._callbacks_by_key(trainer).items():
            try:
                _encode(callback.state_dict(), "", name, {})
            except NotSerializableError as error:
                raise UserError(_serialization_message(name, error)) from None

    def collect(self, trainer: L.Trainer) -> CallbackStates:
        """Current states; a state that cannot be saved is omitted with a warning."""
        values: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, callback in self._callbacks_by_key(trainer).items():
            state = callback.state_dict()
            if not state:
                continue
            own_tensors: dict[str, Tensor] = {}
            try:
                values[name] = _encode(state, "", f"callbacks.{_rank()}.{name}", own_tensors)
            except NotSerializableError as error:
                self._warn_once(
                    f"{_serialization_message(name, error)}; a resumed run does not restore it"
                )
                continue
            tensors |= own_tensors
        return CallbackStates(values, tensors)

    def restore(
        self, trainer: L.Trainer, saved: list[dict[str, Any]], checkpoint_dir: Path
    ) -> None:
        """Restores the state of each callback.

        Args:
            trainer: its callbacks are set up; training has not started.
            saved: `CallbackStates.values` of each rank.
            checkpoint_dir: the checkpoint with the tensors.
        """
        # With another number of ranks, each rank gets the states of rank 0.
        own = saved[_rank() if len(saved) == trainer.world_size else 0] if saved else {}
        buffers: dict[str, Tensor] = {}
        states = {name: _decode(values, buffers) for name, values in own.items()}
        if any(_has_tensors(values) for values in saved):  # collective: every rank loads
            load_checkpoint_tensors(checkpoint_dir, buffers)
        named = self._callbacks_by_key(trainer)
        for name, state in states.items():
            if name in named:
                named[name].load_state_dict(_materialize(state))
            else:
                self._warn_once(
                    f"the checkpoint has a state of the callback {name}, which is not among the "
                    "callbacks of this run; the state is ignored"
                )
        for name, callback in named.items():
            if name not in states and callback.state_dict():
                self._warn_once(
                    f"the checkpoint has no state of the callback {name}; it starts without one"
                )

    def _callbacks_by_key(self, trainer: L.Trainer) -> dict[str, L.Callback]:
        named: dict[str, L.Callback] = {}
        counts: dict[str, int] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if any(callback is excluded for excluded in self._excluded):
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
        "use numbers, strings, lists, dicts, arrays or tensors"
    )


def _encode(value: Any, path: str, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Converts a value to JSON and copies its tensors as bytes.

    Args:
        value: a value of JSON types, tuples, bytes, tensors and arrays.
        path: the path of the value in the state, such as `['losses'][3]`, for the error.
        prefix: prefix of the tensors' names.
        tensors: receives the tensors.

    Raises:
        NotSerializableError: the value is of another type.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {_TYPE_KEY: "number", "of": _encode(np.asarray(value), path, prefix, tensors)}
    if value is None or isinstance(value, bool | int | float | str):
        return value

    def encode_item(value: Any, key: Any) -> Any:
        return _encode(value, f"{path}[{key!r}]", prefix, tensors)

    if type(value) is list:
        return [encode_item(item, i) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {_TYPE_KEY: "tuple", "items": [encode_item(item, i) for i, item in enumerate(value)]}
    if type(value) is dict:
        if all(type(key) is str and key != _TYPE_KEY for key in value):
            return {key: encode_item(item, key) for key, item in value.items()}
        # JSON converts other keys to strings.
        pairs = [[encode_item(key, "key"), encode_item(item, key)] for key, item in value.items()]
        return {_TYPE_KEY: "dict", "items": pairs}
    if type(value) is bytes:
        return {_TYPE_KEY: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        tensor = torch.from_numpy(value.copy())
        return {**_encode(tensor, path, prefix, tensors), _TYPE_KEY: "array"}
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
    """A tensor whose bytes are not loaded yet."""

    buffer: Tensor
    dtype: torch.dtype
    shape: list[int]
    kind: str


def _decode(value: Any, buffers: dict[str, Tensor]) -> Any:
    """Inverse of `_encode`; tensors are pending until `buffers` are loaded."""
    if isinstance(value, list):
        return [_decode(item, buffers) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TYPE_KEY)
    if kind is None:
        return {key: _decode(item, buffers) for key, item in value.items()}
    if kind == "tuple":
        return tuple(_decode(item, buffers) for item in value["items"])
    if kind == "dict":
        return {_decode(key, buffers): _decode(item, buffers) for key, item in value["items"]}
    if kind == "bytes":
        return base64.b64decode(value["base64"])
    if kind == "number":
        return _decode(value["of"], buffers)._replace(kind="number")
    dtype = getattr(torch, value["dtype"])
    count = int(np.prod(value["shape"], dtype=np.int64)) * dtype.itemsize
    buffer = torch.empty(count, dtype=torch.uint8)
    if count:
        buffers[value["name"]] = buffer
    return _PendingTensor(buffer, dtype, value["shape"], kind)


def _materialize(value: Any) -> Any:
    """A decoded value with its loaded tensors."""
    if isinstance(value, _PendingTensor):
        tensor = value.buffer.view(value.dtype).reshape(value.shape)
        if value.kind == "tensor":
            return tensor
        return tensor.numpy() if value.kind == "array" else tensor.numpy()[()]
    if isinstance(value, list | tuple):
        return type(value)(_materialize(item) for item in value)
    if isinstance(value, dict):
        return {key: _materialize(item) for key, item in value.items()}
    return value


def _has_tensors(value: Any) -> bool:
    """Returns True if a JSON value of `_encode` refers to tensors."""
    if isinstance(value, list):
        return any(map(_has_tensors, value))
    if not isinstance(value, dict):
        return False
    if value.get(_TYPE_KEY) in ("tensor", "array"):
        return 0 not in value["shape"]
    return any(map(_has_tensors, value.values()))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
