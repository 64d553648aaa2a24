"""States of user callbacks in a checkpoint: JSON and tensors, without pickle."""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from miniformer.config import UserError
from miniformer.training.distributed.launcher import rank
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

    def collect(self, trainer: L.Trainer, *, strict: bool = False) -> CallbackStates:
        """Current states.

        Args:
            trainer: the Trainer.
            strict: a state that cannot be saved is an error, else it is omitted with a warning.

        Raises:
            UserError: with `strict`, a state cannot be saved.
        """
        values: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, callback in self._callbacks_by_key(trainer).items():
            state = callback.state_dict()
            if not state:
                continue
            own_tensors: dict[str, Tensor] = {}
            try:
                values[name] = _encode(state, "", f"callbacks.{rank()}.{name}", own_tensors)
            except NotSerializableError as error:
                message = (
                    f"the callback {name} has a state that cannot be saved: state_dict(){error}; "
                    "use numbers, strings, lists, dicts, arrays or tensors"
                )
                if strict:
                    raise UserError(message) from None
                self._warn_once(f"{message}; a resumed run does not restore it")
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
        own = saved[rank() if len(saved) == trainer.world_size else 0] if saved else {}
        buffers = {spec["name"]: _empty_buffer(spec) for spec in _tensor_specs(own)}
        if any(_tensor_specs(saved)):  # collective: every rank loads
            load_checkpoint_tensors(checkpoint_dir, buffers)
        named = self._callbacks_by_key(trainer)
        for name, state in own.items():
            if name in named:
                named[name].load_state_dict(_decode(state, buffers))
            else:
                self._warn_once(
                    f"the checkpoint has a state of the callback {name}, which is not among the "
                    "callbacks of this run; the state is ignored"
                )
        for name, callback in named.items():
            if name not in own and callback.state_dict():
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
        if message not in self._warned and rank() == 0:
            warnings.warn(message, stacklevel=2)
        self._warned.add(message)


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


def _tensor_specs(value: Any) -> Iterator[dict[str, Any]]:
    """Descriptions of the tensors in a file that a JSON value of `_encode` refers to."""
    if isinstance(value, list):
        for item in value:
            yield from _tensor_specs(item)
    elif isinstance(value, dict):
        if value.get(_TYPE_KEY) not in ("tensor", "array"):
            yield from _tensor_specs(list(value.values()))
        elif 0 not in value["shape"]:
            yield value


def _empty_buffer(spec: dict[str, Any]) -> Tensor:
    """A buffer for the bytes of a tensor."""
    num_bytes = math.prod(spec["shape"]) * getattr(torch, spec["dtype"]).itemsize
    return torch.empty(num_bytes, dtype=torch.uint8)


def _decode(value: Any, buffers: Mapping[str, Tensor]) -> Any:
    """Inverse of `_encode`; `buffers` holds the bytes of the tensors."""
    if isinstance(value, list):
        return [_decode(item, buffers) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(_TYPE_KEY):
        case None:
            return {key: _decode(item, buffers) for key, item in value.items()}
        case "tuple":
            return tuple(_decode(item, buffers) for item in value["items"])
        case "dict":
            return {_decode(key, buffers): _decode(item, buffers) for key, item in value["items"]}
        case "bytes":
            return base64.b64decode(value["base64"])
        case "number":
            return _decode(value["of"], buffers)[()]
        case kind:
            data = buffers[value["name"]] if 0 not in value["shape"] else _empty_buffer(value)
            tensor = data.view(getattr(torch, value["dtype"])).reshape(value["shape"])
            return tensor.numpy() if kind == "array" else tensor
