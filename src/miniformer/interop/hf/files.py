"""Directories of strangers, read with care: nothing is unpickled or run, no link leads out.

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
_MAX_FILE_BYTES = 64 * 2**20  # a tokenizer may be some megabytes, a config is some kilobytes
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_DTYPE_NAMES = {kind: name for name, kind in _DTYPES.items()}
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class TensorSpec(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: torch.Size


class TensorEntry(NamedTuple):
    """Where a tensor is, and what it is."""

    file: Path
    name: str
    shape: torch.Size
    dtype_name: str  # safetensors' name of its type

    def spec(self) -> TensorSpec:
        """What it is without where it is.

        Raises:
            UserError: it is of a type that weights do not have.
        """
        if self.dtype_name not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(
                f"{self.file}: {self.name!r} is of type {self.dtype_name}, none of {known}"
            )
        return TensorSpec(self.name, _DTYPES[self.dtype_name], self.shape)


class CheckpointDirectory:
    """A directory of a model's files.

    Args:
        path: the directory.

    Raises:
        UserError: there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such directory")
        # In a hub's cache the files are links to blobs beside the snapshots: they may lead there.
        root = self.path.resolve()
        self._roots = [root]
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            self._roots.append(root.parent.parent / "blobs")

    def resolve_file(self, name: str) -> Path | None:
        """A file of this directory; None: there is none.

        Raises:
            UserError: the name leads out of the directory, or it is no regular file.
        """
        path = self.path / name
        if not path.exists() and not path.is_symlink():
            return None
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in self._roots):
            raise UserError(f"{path}: leads out of the directory, to {real}; copy the file there")
        if not real.is_file():
            raise UserError(f"{path}: not a file")
        return path

    def read_bytes(self, name: str) -> bytes | None:
        """A small file's bytes; None: there is none.

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
                raise UserError(f"{path}: {size:,} bytes; such a file has at most {limit} MB")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None

    def read_text(self, name: str) -> str | None:
        """A file's text; None: there is none.

        Raises:
            UserError: it is too large, cannot be read, or is no UTF-8.
        """
        data = self.read_bytes(name)
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path / name}: cannot be read: {error}") from None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None: there is no such file.

        Raises:
            UserError: there is none in it.
        """
        text = self.read_text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name}: not JSON: {error}") from None
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise UserError(f"{self.path / name}: must hold an object, not a {kind}")
        return value

    def tensor_entries(self) -> dict[str, TensorEntry]:
        """Every tensor of `model.safetensors` or of the shards that its index names.

        Raises:
            UserError: there is no such file, or a file is broken or lies.
        """
        index = self.read_json("model.safetensors.index.json")
        if index is None:
            return self._shard_entries("model.safetensors")
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"{self.path}/model.safetensors.index.json: has no weight_map")
        wrong = [x for x in names.values() if not isinstance(x, str) or Path(x).name != x]
        if wrong:
            raise UserError(
                f"{self.path}/model.safetensors.index.json: {wrong[0]!r} is no name of a file"
            )
        found: dict[str, TensorEntry] = {}
        for shard in dict.fromkeys(names.values()):
            twice = found.keys() & (more := self._shard_entries(shard)).keys()
            if twice:
                raise UserError(f"{self.path / shard}: {min(twice)!r} is in another file, too")
            found |= more
        missing = sorted(names.keys() - found.keys())
        if missing:
            raise UserError(f"{self.path}: {missing[0]!r} is in the index, but in no file")
        return found

    def _shard_entries(self, name: str) -> dict[str, TensorEntry]:
        path = self.resolve_file(name)
        if path is None:
            pickles = [each for each in _PICKLES if (self.path / each).exists()]
            hint = (
                f"; {pickles[0]} is a pickle, which may run code as it is read: have transformers "
                "write safetensors with model.save_pretrained(DIR)"
                if pickles
                else ""
            )
            raise UserError(f"{self.path}: {name} is missing{hint}")
        try:
            with safe_open(path, framework="pt") as opened:
                found = {}
                for key in opened.keys():  # noqa: SIM118 -- it is no dict
                    part = opened.get_slice(key)
                    shape = torch.Size(part.get_shape())
                    found[key] = TensorEntry(path, key, shape, str(part.get_dtype()))
                return found
        except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError) as error:
            raise UserError(f"{path}: not a readable safetensors file: {error}") from None


def read_tensor(entry: TensorEntry) -> Tensor:
    """A tensor's values.

    Raises:
        UserError: they are of a type that weights do not have, or cannot be read.
    """
    entry.spec()
    try:
        # Opened for each anew: what was read of a file stays in memory while it is open.
        with safe_open(entry.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(entry.name)
            return tensor
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{entry.file}: cannot be read: {error}") from None


def copy_tensor(entry: TensorEntry, out: Tensor) -> None:
    """Copies a tensor's values some rows at a time, so that no more is held than `into` and they.

    Raises:
        UserError: see `read_tensor`.
    """
    entry.spec()
    rows = max(1, _CHUNK_BYTES // max(1, out[:1].nbytes)) if out.dim() else 1
    try:
        for start in range(0, len(out) if out.dim() else 1, rows):
            with safe_open(entry.file, framework="pt") as opened:
                part = opened.get_slice(entry.name)
                out[start : start + rows].copy_(part[start : start + rows])
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{entry.file}: cannot be read: {error}") from None


def common_dtype(entries: Iterable[TensorEntry]) -> torch.dtype:
    """The one type of all weights; float32 where there are several."""
    kinds = {_DTYPES.get(entry.dtype_name, torch.float32) for entry in entries}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def write_tensors(path: Path, specs: list[TensorSpec], tensors: Iterator[Tensor]) -> None:
    """Writes a safetensors file, one tensor after another.

    Args:
        path: the file.
        outlines: what is to come, in order.
        tensors: the values, in the same order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, kind, shape in specs:
        end = start + math.prod(shape) * kind.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[kind],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as tmp_path, tmp_path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, kind, shape), tensor in zip(specs, tensors, strict=True):
            assert tensor.dtype == kind, name
            assert tensor.shape == shape, name
            flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            file.write(flat.numpy().data)
