"""Checkpoint files of a run: `<run>/checkpoints/step-00000120-0/`.

    *.safetensors   weights, optimizer states and averages by name; one file per rank
    state.json      everything else, as JSON

A checkpoint is written to a temporary directory and renamed when it is complete. Older ones are
removed after that, so a complete checkpoint exists at any time. Loading never unpickles.
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
    """Writes a checkpoint; collective: every rank passes its shards of the tensors.

    Raises:
        UserError: writing fails for lack of permission or disk space. Older checkpoints stay.
    """
    folder = _unused_path(run_dir / CHECKPOINTS_DIR, step)
    tmp_path = folder.with_name(folder.name + ".part")
    is_rank0 = _rank() == 0
    try:
        if is_rank0:
            _remove_tree(tmp_path)
            tmp_path.mkdir(parents=True)
        _barrier()
        if _is_distributed():
            _save_sharded(tensors, tmp_path)
        else:
            with atomic_path(tmp_path / _TENSORS_FILE) as path:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        if is_rank0:
            (tmp_path / _METADATA_FILE).write_text(json.dumps(metadata), encoding="utf-8")
            for path in (*tmp_path.iterdir(), tmp_path):  # flushed before the rename
                fsync(path)
            os.replace(tmp_path, folder)
            fsync(folder.parent)  # and the rename, before older ones are removed
            for path in folder.parent.iterdir():
                if path != folder:
                    _remove_tree(path)
    except (OSError, SafetensorError) as error:
        _remove_tree(tmp_path)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: the checkpoint cannot be written: {reason}; "
            f"{_previous_checkpoint_message(run_dir)}; free disk space, then --resume {run_dir}"
        ) from None
    _barrier()
    return folder


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run; None: there is none."""
    paths = (run_dir / CHECKPOINTS_DIR).glob("step-" + "[0-9]" * 8 + "-[0-9]")
    return max((path for path in paths if (path / _METADATA_FILE).is_file()), default=None)


def read_checkpoint_metadata(checkpoint_dir: Path) -> dict[str, Any]:
    """The metadata of a checkpoint: its state without the tensors.

    Raises:
        UserError: the file is not readable.
    """
    path = checkpoint_dir / _METADATA_FILE
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable checkpoint: {error}") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: must hold an object, not a {type(metadata).__name__}")
    return metadata


def load_checkpoint_tensors(checkpoint_dir: Path, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors of a checkpoint in place; collective. Sharded tensors are resharded.

    Args:
        checkpoint_dir: the checkpoint.
        tensors: tensors by name; each must be in the checkpoint with the same shape.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    try:
        path = checkpoint_dir / _TENSORS_FILE
        if path.is_file() and not _is_distributed():
            saved = load_file(path)
            for name, tensor in tensors.items():
                if saved[name].shape != tensor.shape:
                    raise UserError(f"{checkpoint_dir}: {name} is {list(saved[name].shape)} there, "
                                    f"{list(tensor.shape)} here")  # fmt: skip
                tensor.copy_(saved[name])
        else:
            _load_sharded(tensors, checkpoint_dir)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{checkpoint_dir}: not a readable checkpoint of this run: {error}"
        ) from None


def _save_sharded(tensors: Mapping[str, Tensor], checkpoint_dir: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(checkpoint_dir), save_distributed=True)
    save(dict(tensors), storage_writer=writer)


def _load_sharded(tensors: Mapping[str, Tensor], checkpoint_dir: Path) -> None:
    """Loads tensors whose sharding may differ from that of the files."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(checkpoint_dir))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(dict(tensors), storage_reader=reader, no_dist=not _is_distributed())


def _previous_checkpoint_message(run_dir: Path) -> str:
    path = latest_checkpoint(run_dir)
    return "there is no earlier one" if path is None else f"the earlier one, {path}, is complete"


def _unused_path(checkpoints_dir: Path, step: int) -> Path:
    """A path that does not exist, so that the new checkpoint replaces no earlier one."""
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
    """Shape, dtype and device type of a tensor as JSON; see `empty_from_spec`."""
    return [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device.type]


def empty_from_spec(spec: list[Any], parameter: Tensor) -> Tensor:
    """An empty tensor from a `tensor_spec`; sharded like the parameter if it has its shape."""
    shape, name, device = spec
    dtype = getattr(torch, name)
    if shape == list(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype, device="cpu" if device == "cpu" else parameter.device)
