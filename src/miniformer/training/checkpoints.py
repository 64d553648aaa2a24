"""Files of a run's state: `<run>/checkpoints/step-00000120-0/`.

    *.safetensors   weights, optimiser states and averages by name; of several devices a file each
    state.json      everything else, in plain JSON types

A state is written beside and renamed when it is whole, then older ones are removed: whatever
happens in between, one is there. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from miniformer.config import UserError
from miniformer.utils.atomic import atomic_path, fsync

CHECKPOINTS = "checkpoints"
_STATE = "state.json"
_ONE_FILE = "state.safetensors"


def write_checkpoint(
    run: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Path:
    """Writes a state; every device calls it, with its share of the tensors.

    Raises:
        UserError: it cannot be written: there is no permission or no room. Older ones stay.
    """
    folder = _free(run / CHECKPOINTS, step)
    beside = folder.with_name(folder.name + ".part")
    first = _rank() == 0
    try:
        if first:
            _remove(beside)
            beside.mkdir(parents=True)
        _wait()
        if _several():
            _write_shares(tensors, beside)
        else:
            with atomic_path(beside / _ONE_FILE) as path:
                save_file({name: each.contiguous() for name, each in tensors.items()}, path)
        if first:
            (beside / _STATE).write_text(json.dumps(about), encoding="utf-8")
            for path in (*beside.iterdir(), beside):  # on the disk before it gets its name
                fsync(path)
            os.replace(beside, folder)
            fsync(folder.parent)  # and its name before older ones go: power may fail, too
            for other in folder.parent.iterdir():
                if other != folder:
                    _remove(other)
    except (OSError, SafetensorError) as error:
        _remove(beside)
        told = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: the state of the run cannot be written: {told}; "
            f"{_what_is_left(run)}; make room and go on with --resume {run}"
        ) from None
    _wait()
    return folder


def latest(run: Path) -> Path | None:
    """The newest whole state of a run; None: there is none."""
    found = (run / CHECKPOINTS).glob("step-" + "[0-9]" * 8 + "-[0-9]")
    return max((each for each in found if (each / _STATE).is_file()), default=None)


def read_about(folder: Path) -> dict[str, Any]:
    """What is not tensors of a state.

    Raises:
        UserError: it is broken.
    """
    path = folder / _STATE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable state of a run: {error}") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: must hold an object, not a {type(about).__name__}")
    return about


def read_tensors(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fills tensors with those of a state, whole or as devices share them now.

    Args:
        folder: the state.
        into: by name; each must be in the state with that shape.

    Raises:
        UserError: one is not.
    """
    try:
        one = folder / _ONE_FILE
        if one.is_file() and not _several():
            found = load_file(one)
            for name, tensor in into.items():
                if found[name].shape != tensor.shape:
                    raise UserError(f"{folder}: {name} is {list(found[name].shape)} there, "
                                    f"{list(tensor.shape)} here")  # fmt: skip
                tensor.copy_(found[name])
        else:
            _read_shares(into, folder)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder}: not a readable state of this run: {error}") from None


def _write_shares(tensors: Mapping[str, Tensor], folder: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(dict(tensors), storage_writer=writer)


def _read_shares(into: Mapping[str, Tensor], folder: Path) -> None:
    """Fills tensors that may be cut in other ways than those of the files are."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(dict(into), storage_reader=reader, no_dist=not _several())


def _what_is_left(run: Path) -> str:
    left = latest(run)
    return "there was none before" if left is None else f"the one before, {left}, is whole"


def _free(folder: Path, step: int) -> Path:
    """A name that no state has yet, so that none has to go before the new one is whole."""
    names = (folder / f"step-{step:08d}-{number}" for number in range(10))
    return next(name for name in names if not name.exists())


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _rank() -> int:
    return dist.get_rank() if _several() else 0


def _wait() -> None:
    if _several():
        dist.barrier()


def describe(tensor: Tensor) -> list[Any]:
    """Shape, type and place of a tensor as JSON; see `like`."""
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device.type]


def like(described: list[Any], parameter: Tensor) -> Tensor:
    """An empty tensor as described; of a parameter's shape, it is cut and placed as that one is."""
    shape, name, device = described
    dtype = getattr(torch, name)
    if shape == list(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype, device="cpu" if device == "cpu" else parameter.device)
