"""Packed files, `.gz` and `.zst`, to the bytes they hold."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from miniformer.config import UserError
from miniformer.data.files import (
    PACKINGS,
    Handle,
    Progress,
    fingerprint,
    kind_of,
    open_file,
)
from miniformer.utils.atomic import PendingFile

_BLOCK = 1 << 20


def open_stream(path: Path) -> io.BufferedReader:
    """A file, unpacked as it is read front to back.

    Raises:
        UserError: it cannot be opened, or, as it is read, its packing is broken.
    """
    packed = open_file(path, regular=False)
    if path.suffix not in PACKINGS:
        return io.BufferedReader(packed, _BLOCK)
    try:
        return io.BufferedReader(_Unpacked(packed, path), _BLOCK)
    except UserError:
        packed.close()
        raise


def unpack(path: Path, folder: Path, progress: Progress | None = None) -> Path:
    """The file that a packed one holds, unpacked into `folder` unless it is there already.

    Args:
        path: a `.gz` or `.zst` file.
        folder: where to keep the unpacked file.
        progress: told the name, the bytes read and the bytes of the packed file.

    Raises:
        UserError: it is broken or cut off, or there is no room; nothing half-written stays.
    """
    handle = Handle(path, path)
    key = fingerprint(handle, path)
    kind, _ = kind_of(path)
    for kept in folder.glob(f"{key}-*{kind}"):
        if kept.name == f"{key}-{kept.stat().st_size}{kind}":
            return kept

    try:
        with PendingFile(folder) as pending:
            size = 0
            with _Unpacked(open_file(path), path) as packed, pending.path.open("wb") as file:
                while block := packed.read(_BLOCK):
                    size += file.write(block)
                    if progress:
                        progress(str(path), packed.done, handle.stamp.size)
            handle.check()
            unpacked = folder / f"{key}-{size}{kind}"
            pending.commit(unpacked)
            return unpacked
    except OSError as error:
        raise UserError(
            f"{path}: cannot unpack it into {folder}: {error.strerror}; make room, or name "
            "another folder as cache_dir"
        ) from None


class _Unpacked(io.RawIOBase):
    """A packed file as the bytes it holds, however many frames it is packed in."""

    def __init__(self, packed: io.FileIO, path: Path) -> None:
        self._path, self._packed = path, packed
        self._packing = _zstd() if path.suffix == ".zst" else _GZIP
        self._frame: Any = None  # the decompressor of the frame begun
        self._rest, self._ready = b"", memoryview(b"")
        self.done = 0  # bytes read of the packed file

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._packed.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._advance():
                return 0
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _advance(self) -> bool:
        """Unpacks some more; False: there is no more."""
        data = self._rest or self._packed.read(self._packing.block) or b""
        self.done += 0 if self._rest else len(data)
        self._rest = b""
        if not data:
            if self._frame is not None:
                raise UserError(f"{self._path}: the file is cut off; copy or download it again")
            return False
        if self._frame is None:
            if self._path.suffix == ".gz" and self.done > len(data):
                data = data.lstrip(b"\0")  # tapes and some tools fill up with zeros
                if not data:
                    return True
            self._frame = self._packing.new()
        try:
            self._ready = memoryview(self._frame.decompress(data))
        except self._packing.error as error:
            raise UserError(
                f"{self._path}: not a whole {self._path.suffix} file ({error}); "
                "copy or download it again"
            ) from None
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None
        return True


class _Packing(NamedTuple):
    new: Callable[[], Any]  # makes a decompressor of one frame
    error: type[Exception]  # that it raises
    block: int  # packed bytes given to it at once


_GZIP = _Packing(lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), zlib.error, 1 << 16)


def _zstd() -> _Packing:
    block = 1 << 11  # four bytes can stand for 128 KB, so a little at a time keeps memory flat
    if sys.version_info >= (3, 14):
        from compression import zstd

        return _Packing(zstd.ZstdDecompressor, zstd.ZstdError, block)
    try:
        import zstandard
    except ImportError:
        raise UserError(
            '.zst files need the package zstandard; pip install "miniformer[zstd]", '
            "or pack the file as .gz"
        ) from None
    new = zstandard.ZstdDecompressor
    return _Packing(lambda: new().decompressobj(), zstandard.ZstdError, block)
