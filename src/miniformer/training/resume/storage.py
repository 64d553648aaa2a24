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

CHECKPOINTS_DIR = "checkpoints"
_METADATA_FILE = "state.json"
_TENSORS_FILE = "state.safetensors"


def write_checkpoint(
    run_dir: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> Path:
    """Writes a state; every device calls it, with its share of the tensors.

    Raises:
        UserError: it cannot be written: there is no permission or no room. Older ones stay.
    """
    folder = _unused_path(run_dir / CHECKPOINTS_DIR, step)
    beside = folder.with_name(folder.name + ".part")
    first = _rank() == 0
    try:
        if first:
            _remove_tree(beside)
            beside.mkdir(parents=True)
        _barrier()
        if _is_distributed():
            _save_sharded(tensors, beside)
        else:
            with atomic_path(beside / _TENSORS_FILE) as path:
                save_file({name: each.contiguous() for name, each in tensors.items()}, path)
        if first:
            (beside / _METADATA_FILE).write_text(json.dumps(metadata), encoding="utf-8")
            for path in (*beside.iterdir(), beside):  # on the disk before it gets its name
                fsync(path)
            os.replace(beside, folder)
            fsync(folder.parent)  # and its name before older ones go: power may fail, too
            for other in folder.parent.iterdir():
                if other != folder:
                    _remove_tree(other)
    except (OSError, SafetensorError) as error:
        _remove_tree(beside)
        told = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: the state of the run cannot be written: {told}; "
            f"{_previous_checkpoint_message(run_dir)}; make room and go on with --resume {run_dir}"
        ) from None
    _barrier()
    return folder


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole state of a run; None: there is none."""
    found = (run_dir / CHECKPOINTS_DIR).glob("step-" + "[0-9]" * 8 + "-[0-9]")
    return max((each for each in found if (each / _METADATA_FILE).is_file()), default=None)


def read_checkpoint_metadata(checkpoint_dir: Path) -> dict[str, Any]:
    """What is not tensors of a state.

    Raises:
        UserError: it is broken.
    """
    path = checkpoint_dir / _METADATA_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable state of a run: {error}") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: must hold an object, not a {type(about).__name__}")
    return about


def load_checkpoint_tensors(checkpoint_dir: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills tensors with those of a state, whole or as devices share them now.

    Args:
        folder: the state.
        into: by name; each must be in the state with that shape.

    Raises:
        UserError: one is not.
    """
    try:
        one = checkpoint_dir / _TENSORS_FILE
        if one.is_file() and not _is_distributed():
            found = load_file(one)
            for name, tensor in tensors.items():
                if found[name].shape != tensor.shape:
                    raise UserError(f"{checkpoint_dir}: {name} is {list(found[name].shape)} there, "
                                    f"{list(tensor.shape)} here")  # fmt: skip
                tensor.copy_(found[name])
        else:
            _load_sharded(tensors, checkpoint_dir)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{checkpoint_dir}: not a readable state of this run: {error}") from None


def _save_sharded(tensors: Mapping[str, Tensor], checkpoint_dir: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(checkpoint_dir), save_distributed=True)
    save(dict(tensors), storage_writer=writer)


def _load_sharded(tensors: Mapping[str, Tensor], checkpoint_dir: Path) -> None:
    """Fills tensors that may be cut in other ways than those of the files are."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(checkpoint_dir))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(dict(tensors), storage_reader=reader, no_dist=not _is_distributed())


def _previous_checkpoint_message(run_dir: Path) -> str:
    left = latest_checkpoint(run_dir)
    return "there was none before" if left is None else f"the one before, {left}, is whole"


def _unused_path(checkpoints_dir: Path, step: int) -> Path:
    """A name that no state has yet, so that none has to go before the new one is whole."""
    names = (checkpoints_dir / f"step-{step:08d}-{number}" for number in range(10))
    return next(name for name in names if not name.exists())


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _rank() -> int:
    return dist.get_rank() if _is_distributed() else 0


def _barrier() -> None:
    if _is_distributed():
        dist.barrier()


def tensor_spec(tensor: Tensor) -> list[Any]:
    """Shape, type and place of a tensor as JSON; see `like`."""
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device.type]


def empty_from_spec(spec: list[Any], parameter: Tensor) -> Tensor:
    """An empty tensor as described; of a parameter's shape, it is cut and placed as that one is."""
    shape, name, device = spec
    dtype = getattr(torch, name)
    if shape == list(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype, device="cpu" if device == "cpu" else parameter.device)
