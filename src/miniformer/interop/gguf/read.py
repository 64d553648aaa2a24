"""Reads untrusted GGUF files: every count is compared with the size of the file before it is used.

magic, version, numbers of tensors and keys -> keys -> names, shapes, types, offsets -> data
"""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from miniformer.config import UserError
from miniformer.interop.gguf.types import TYPES, num_bytes, type_name

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEYS, _MAX_TENSORS = 10_000, 200_000
_MAX_NAME, _MAX_STRING = 65_535, 64 * 2**20
_MAX_ITEMS = 16 * 2**20  # of all arrays together
_MAX_DIMS = 4
# Number of a type of values -> its struct format.
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """A tensor of a file; the shape has torch's order of axes."""

    kind: str
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    n_bytes: int


class GgufFile:
    """Keys and tensors of a file.

    Args:
        path: the file.

    Raises:
        UserError: it is missing, not a GGUF file, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with self.path.open("rb") as file:
                self.size = file.seek(0, 2)
                file.seek(0)
                self._read(_Stream(file, self.size))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{self.path}: cannot be read: {reason}") from None
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

    def data(self, name: str) -> bytes:
        """Bytes of a tensor.

        Raises:
            UserError: the file cannot be read, or has become shorter.
        """
        info = self.tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(info.start)
                data = file.read(info.n_bytes)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        if len(data) != info.n_bytes:
            raise UserError(f"{self.path}: ends within the tensor {name!r}")
        return data

    def _read(self, stream: _Stream) -> None:
        if stream.take(4) != _MAGIC:
            raise UserError("not a GGUF file")
        version = stream.unpack("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "a big-endian file" if swapped in _VERSIONS else f"version {version}"
            raise UserError(f"{kind} is not supported, only versions 2 and 3, little-endian")
        n_tensors, n_keys = stream.unpack("Q"), stream.unpack("Q")
        if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
            raise UserError(f"damaged: it names {n_tensors} tensors and {n_keys} keys")
        for _ in range(n_keys):
            key = stream.string(_MAX_NAME)
            if key in self.metadata:
                raise UserError(f"damaged: the key {key!r:.100} occurs twice")
            self.metadata[key] = stream.value(stream.unpack("I"))
        infos = [_read_info(stream) for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment % 8:
            raise UserError(f"general.alignment={alignment!r:.80} is not a multiple of 8")
        self._locate(infos, -(-stream.position // alignment) * alignment, alignment)

    def _locate(
        self, infos: list[tuple[str, str, tuple[int, ...], int]], start: int, alignment: int
    ) -> None:
        """Checks that the tensors lie within the file, and do not overlap."""
        for name, kind, shape, offset in infos:
            size = num_bytes(kind, math.prod(shape))
            if name in self.tensors:
                raise UserError(f"damaged: the tensor {name!r:.100} occurs twice")
            if offset % alignment:
                raise UserError(f"damaged: the offset of the tensor {name!r:.100} is not aligned")
            if start + offset + size > self.size:
                raise UserError(f"damaged: the tensor {name!r:.100} ends beyond the file")
            self.tensors[name] = TensorInfo(kind, shape, start + offset, size)
        ends = sorted((info.start, info.n_bytes, name) for name, info in self.tensors.items())
        for (begin, size, name), (following, _, neighbor) in itertools.pairwise(ends):
            if begin + size > following:
                raise UserError(f"damaged: the tensors {name!r:.100} and {neighbor!r:.100} overlap")


class _Stream:
    """Sequential reading with limits.

    Args:
        file: the open file.
        size: its size.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.position, self.items = file, size, 0, 0

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            UserError: the file ends before.
        """
        if count > self.size - self.position:
            raise UserError("damaged: the file ends within its header")
        data = self.file.read(count)
        if len(data) != count:
            raise UserError("damaged: the file ends within its header")
        self.position += count
        return data

    def unpack(self, letter: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def string(self, limit: int = _MAX_STRING) -> str:
        """The next string.

        Raises:
            UserError: it is too long, or not UTF-8.
        """
        length = self.unpack("Q")
        if length > limit:
            raise UserError(f"damaged: it has a string of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError("damaged: a string is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """The next value of a type; an array becomes a list.

        Raises:
            UserError: the type is unknown, or an array is nested or larger than the file.
        """
        if kind in _FORMATS:
            return self.unpack(_FORMATS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise UserError(f"damaged: it has a value of the unknown type {kind}")
        item, count = self.unpack("I"), self.unpack("Q")
        self.items += count
        if self.items > _MAX_ITEMS:
            raise UserError(f"damaged: it has an array of {count} items")
        if item in _FORMATS:
            letter = _FORMATS[item]
            data = self.take(struct.calcsize(f"<{letter}") * count)
            return list(struct.unpack(f"<{count}{letter}", data))
        if item != _STRING:
            raise UserError(f"damaged: it has an array of items of the type {item}")
        if 8 * count > self.size - self.position:
            raise UserError("damaged: the file ends within its header")
        return [self.string() for _ in range(count)]


def _read_info(stream: _Stream) -> tuple[str, str, tuple[int, ...], int]:
    """Name, type, shape and offset of a tensor."""
    name = stream.string(_MAX_NAME)
    dims = stream.unpack("I")
    if not 1 <= dims <= _MAX_DIMS:
        raise UserError(f"damaged: the tensor {name!r:.100} has {dims} axes")
    shape = tuple(stream.unpack("Q") for _ in range(dims))
    number = stream.unpack("I")
    kind = type_name(number)
    if kind is None:
        raise UserError(
            f"the tensor {name!r:.100} has type {number}, which is not supported, only "
            f"{', '.join(TYPES)}"
        )
    if math.prod(shape) > 2**60 or 0 in shape or shape[0] % TYPES[kind].block:
        raise UserError(f"damaged: the tensor {name!r:.100} has shape {list(shape)}")
    return name, kind, shape[::-1], stream.unpack("Q")
