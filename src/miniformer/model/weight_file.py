"""Tensors of a `model.safetensors`, read one by one into memory of their own.

So loading needs little more memory than the model. A mapped file would count as memory, too.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from miniformer.config import UserError
from miniformer.utils.memory import release_freed_memory

_PART_BYTES = 2**25  # that are read before a model gets them


class WeightSource(NamedTuple):
    """A tensor that is not read yet.

    Args:
        shape: its shape.
        dtype: its type.
        read: reads it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[dict[str, WeightSource]]:
    """Context with the tensors of a safetensors file by name, which can be read inside of it.

    Raises:
        UserError: the file is missing or broken.
    """
    try:
        with path.open("rb") as file:
            # Views of the mapped file, of which nothing is read.
            with safe_open(path, framework="pt") as mapped:
                tensors = {name: mapped.get_tensor(name) for name in mapped.keys()}  # noqa: SIM118
                formats = {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}
                del tensors
            offsets = _data_offsets(file)
            yield {
                name: WeightSource(
                    *formats[name], functools.partial(_read, file, offsets[name], *formats[name])
                )
                for name in formats
            }
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory needs its weights") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None


def empty_model(make: Callable[[], Any]) -> Any:
    """A model whose weights have no memory until `assign_weights` (device meta).

    A model has memory if it has tensors that are no part of its `state_dict`, or if a part reads
    its tensors when it is made.

    Args:
        make: makes the model.
    """
    try:
        with torch.device("meta"):
            model = make()
    except Exception:  # that of a part of one's own; any other error comes again
        return make()
    return make() if _has_other_tensors(model) else model


def _has_other_tensors(model: nn.Module) -> bool:
    """True for buffers that are not stored, and for tensors in plain attributes of modules."""
    buffers = {name for name, _ in model.named_buffers()}
    values = (value for module in model.modules() for value in vars(module).values())
    lists = (value if isinstance(value, (list, tuple)) else [value] for value in values)
    has_plain = any(isinstance(value, Tensor) for value in itertools.chain.from_iterable(lists))
    return has_plain or not buffers <= model.state_dict().keys()


def assign_weights(model: nn.Module, sources: Mapping[str, WeightSource]) -> None:
    """Reads the `state_dict` of a model.

    Args:
        model: the model; weights on the device meta are replaced by the tensors that are read.
        sources: all tensors by name.
    """
    state = model.state_dict()
    part: dict[str, Tensor] = {}
    previous = ""
    for name in state:
        module = name.rpartition(".")[0]
        # A module gets all of its tensors at once, since it may have a rule of its own for them.
        if module != previous and sum(x.nbytes for x in part.values()) >= _PART_BYTES:
            _assign(model, part, state)
            part.clear()
            release_freed_memory()  # of decoding, which is scattered
        part[name], previous = sources[name].read().to(state[name].dtype), module
    _assign(model, part, state)


def _assign(model: nn.Module, part: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for is_meta in (False, True):
        tensors = {name: x for name, x in part.items() if state[name].is_meta == is_meta}
        if tensors:
            model.load_state_dict(tensors, strict=False, assign=is_meta)


def _data_offsets(file: BinaryIO) -> dict[str, int]:
    """The position of each tensor in a valid safetensors file."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    return {
        name: 8 + size + item["data_offsets"][0]
        for name, item in header.items()
        if name != "__metadata__"
    }


def _read(file: BinaryIO, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Reads a tensor of the CPU."""
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    file.seek(offset)
    if file.readinto(tensor.flatten().view(torch.uint8).numpy().data) != tensor.nbytes:  # type: ignore[attr-defined]
        raise OSError("it ends early")
    return tensor
