"""Reads untrusted checkpoints: no unpickling, no code execution, no symlinks out of the directory.

Tensors are read and written one at a time, so that a file may be larger than the memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from miniformer.config import UserError
from miniformer.utils.atomic import atomic_path

_CHUNK_BYTES = 32 * 2**20
_MAX_FILE_BYTES = 64 * 2**20  # of a JSON or tokenizer file
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class TensorSpec(NamedTuple):
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: torch.dtype
    shape: torch.Size


class TensorEntry(NamedTuple):
    """A tensor in a file."""

    file: Path
    name: str
    shape: torch.Size
    dtype_name: str  # in safetensors' notation

    def spec(self) -> TensorSpec:
        """Name, dtype and shape.

        Raises:
            UserError: the dtype is not a floating-point type.
        """
        if self.dtype_name not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(
                f"{self.file}: {self.name!r} has dtype {self.dtype_name}, none of {known}"
            )
        return TensorSpec(self.name, _DTYPES[self.dtype_name], self.shape)


class CheckpointDirectory:
    """A directory of a model's files.

    Args:
        path: the directory.

    Raises:
        UserError: it does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such directory")
        # The hub's cache links files to blobs beside the snapshots; these links are allowed.
        root = self.path.resolve()
        self._roots = [root]
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            self._roots.append(root.parent.parent / "blobs")

    def resolve_file(self, name: str) -> Path | None:
        """Path of a file of this directory; None: it does not exist.

        Raises:
            UserError: it is outside the directory, or not a regular file.
        """
        path = self.path / name
        if not path.exists() and not path.is_symlink():
            return None
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in self._roots):
            raise UserError(f"{path}: links out of the directory, to {real}; copy the file there")
        if not real.is_file():
            raise UserError(f"{path}: not a file")
        return path

    def read_bytes(self, name: str) -> bytes | None:
        """Content of a small file; None: it does not exist.

        Raises:
            UserError: it is too large, or cannot be read.
        """
        path = self.resolve_file(name)
        if path is None:
            return None
        try:
            size = path.stat().st_size
            if size > _MAX_FILE_BYTES:
                limit = _MAX_FILE_BYTES // 2**20
                raise UserError(f"{path}: {size:,} bytes; the limit is {limit} MB")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None

    def read_text(self, name: str) -> str | None:
        """Text of a file; None: it does not exist.

        Raises:
            UserError: it is too large, cannot be read, or is not UTF-8.
        """
        data = self.read_bytes(name)
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path / name}: cannot be read: {error}") from None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None: it does not exist.

        Raises:
            UserError: it is not a JSON object.
        """
        text = self.read_text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name}: not JSON: {error}") from None
        if not isinstance(value, dict):
            type_name = type(value).__name__
            raise UserError(f"{self.path / name}: must hold an object, not a {type_name}")
        return value

    def tensor_entries(self) -> dict[str, TensorEntry]:
        """Entries of all tensors of `model.safetensors` or of the shards in its index.

        Raises:
            UserError: a file is missing, broken or inconsistent.
        """
        index = self.read_json("model.safetensors.index.json")
        if index is None:
            return self._shard_entries("model.safetensors")
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"{self.path}/model.safetensors.index.json: has no weight_map")
        invalid = [x for x in names.values() if not isinstance(x, str) or Path(x).name != x]
        if invalid:
            raise UserError(
                f"{self.path}/model.safetensors.index.json: {invalid[0]!r} is not a file name"
            )
        entries: dict[str, TensorEntry] = {}
        for shard in dict.fromkeys(names.values()):
            shard_entries = self._shard_entries(shard)
            duplicates = entries.keys() & shard_entries.keys()
            if duplicates:
                raise UserError(f"{self.path / shard}: {min(duplicates)!r} is in another file, too")
            entries |= shard_entries
        missing = sorted(names.keys() - entries.keys())
        if missing:
            raise UserError(f"{self.path}: {missing[0]!r} is in the index, but in no file")
        return entries

    def _shard_entries(self, name: str) -> dict[str, TensorEntry]:
        path = self.resolve_file(name)
        if path is None:
            pickles = [name for name in _PICKLES if (self.path / name).exists()]
            hint = (
                f"; {pickles[0]} is a pickle, which may execute code: convert it to safetensors "
                "with transformers' model.save_pretrained(DIR)"
                if pickles
                else ""
            )
            raise UserError(f"{self.path}: {name} is missing{hint}")
        try:
            with safe_open(path, framework="pt") as file:
                entries = {}
                for key in file.keys():  # noqa: SIM118 -- not a dict
                    view = file.get_slice(key)
                    shape = torch.Size(view.get_shape())
                    entries[key] = TensorEntry(path, key, shape, str(view.get_dtype()))
                return entries
        except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError) as error:
            raise UserError(f"{path}: not a readable safetensors file: {error}") from None


def read_tensor(entry: TensorEntry) -> Tensor:
    """Reads a tensor.

    Raises:
        UserError: the dtype is not a floating-point type, or the file cannot be read.
    """
    entry.spec()
    try:
        # Opened for each tensor: mapped pages stay in memory while a file is open.
        with safe_open(entry.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(entry.name)
            return tensor
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{entry.file}: cannot be read: {error}") from None


def copy_tensor(entry: TensorEntry, out: Tensor) -> None:
    """Copies a tensor into `out` in chunks of rows, to limit memory.

    Raises:
        UserError: see `read_tensor`.
    """
    entry.spec()
    rows = max(1, _CHUNK_BYTES // max(1, out[:1].nbytes)) if out.dim() else 1
    try:
        for start in range(0, len(out) if out.dim() else 1, rows):
            with safe_open(entry.file, framework="pt") as file:
                view = file.get_slice(entry.name)
                out[start : start + rows].copy_(view[start : start + rows])
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{entry.file}: cannot be read: {error}") from None


def common_dtype(entries: Iterable[TensorEntry]) -> torch.dtype:
    """The dtype of all tensors; float32 if they differ."""
    dtypes = {_DTYPES.get(entry.dtype_name, torch.float32) for entry in entries}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def write_tensors(path: Path, specs: list[TensorSpec], tensors: Iterator[Tensor]) -> None:
    """Writes a safetensors file, one tensor at a time.

    Args:
        path: the file.
        specs: names, dtypes and shapes.
        tensors: the values, in the same order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape in specs:
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as tmp_path, tmp_path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, dtype, shape), tensor in zip(specs, tensors, strict=True):
            assert tensor.dtype == dtype, name
            assert tensor.shape == shape, name
            flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            file.write(flat.numpy().data)
