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

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from miniformer.config import UserError
from miniformer.training.distributed.launcher import rank
from miniformer.utils.atomic import atomic_path, fsync
from miniformer.utils.jsonl import read_json

CHECKPOINTS_DIR = "checkpoints"
_METADATA_FILE = "state.json"
TENSORS_FILE = "state.safetensors"


def write_checkpoint(
    run_dir: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> Path:
    """Writes a checkpoint; collective: every rank passes its shards of the tensors.

    Raises:
        UserError: writing fails for lack of permission or disk space. Older checkpoints stay.
    """
    names = (f"step-{step:08d}-{number}" for number in range(10))
    paths = (run_dir / CHECKPOINTS_DIR / name for name in names)
    folder = next(path for path in paths if not path.exists())  # replaces no earlier one
    tmp_path = folder.with_name(folder.name + ".part")
    is_rank0 = rank() == 0
    try:
        if is_rank0:
            shutil.rmtree(tmp_path, ignore_errors=True)
            tmp_path.mkdir(parents=True)
        _barrier()
        if _is_distributed():
            _save_sharded(tensors, tmp_path)
        else:
            with atomic_path(tmp_path / TENSORS_FILE) as path:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        if is_rank0:
            (tmp_path / _METADATA_FILE).write_text(json.dumps(metadata), encoding="utf-8")
            for path in (*tmp_path.iterdir(), tmp_path):  # flushed before the rename
                fsync(path)
            os.replace(tmp_path, folder)
            fsync(folder.parent)  # and the rename, before older ones are removed
            for path in folder.parent.iterdir():
                if path != folder:
                    shutil.rmtree(path, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(tmp_path, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        last = latest_checkpoint(run_dir)
        earlier = f"the earlier one, {last}, is complete" if last else "there is no earlier one"
        raise UserError(
            f"{folder}: the checkpoint cannot be written: {reason}; "
            f"{earlier}; free disk space, then --resume {run_dir}"
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
        metadata = read_json(path)
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
        path = checkpoint_dir / TENSORS_FILE
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


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _barrier() -> None:
    if _is_distributed():
        dist.barrier()
