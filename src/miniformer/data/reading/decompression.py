"""Packed files, `.gz` and `.zst`, to the bytes they hold."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from miniformer.config import UserError
from miniformer.data.reading.files import (
    COMPRESSIONS,
    ProgressCallback,
    RandomAccessFile,
    fingerprint,
    open_file,
    parse_suffixes,
)
from miniformer.utils.atomic import PendingFile

_BLOCK_BYTES = 1 << 20


def open_stream(path: Path) -> io.BufferedReader:
    """A file, unpacked as it is read front to back.

    Raises:
        UserError: it cannot be opened, or, as it is read, its packing is broken.
    """
    packed = open_file(path, regular=False)
    if path.suffix not in COMPRESSIONS:
        return io.BufferedReader(packed, _BLOCK_BYTES)
    try:
        return io.BufferedReader(_DecompressedStream(packed, path), _BLOCK_BYTES)
    except UserError:
        packed.close()
        raise


def decompress_file(path: Path, cache_dir: Path, progress: ProgressCallback | None = None) -> Path:
    """The file that a packed one holds, unpacked into `folder` unless it is there already.

    Args:
        path: a `.gz` or `.zst` file.
        folder: where to keep the unpacked file.
        progress: told the name, the bytes read and the bytes of the packed file.

    Raises:
        UserError: it is broken or cut off, or there is no room; nothing half-written stays.
    """
    handle = RandomAccessFile(path, path)
    key = fingerprint(handle, path)
    kind, _ = parse_suffixes(path)
    for kept in cache_dir.glob(f"{key}-*{kind}"):
        if kept.name == f"{key}-{kept.stat().st_size}{kind}":
            return kept

    try:
        with PendingFile(cache_dir) as pending:
            size = 0
            with (
                _DecompressedStream(open_file(path), path) as packed,
                pending.path.open("wb") as file,
            ):
                while block := packed.read(_BLOCK_BYTES):
                    size += file.write(block)
                    if progress:
                        progress(str(path), packed.bytes_read, handle.stat.size)
            handle.check_unchanged()
            unpacked = cache_dir / f"{key}-{size}{kind}"
            pending.commit(unpacked)
            return unpacked
    except OSError as error:
        raise UserError(
            f"{path}: cannot unpack it into {cache_dir}: {error.strerror}; make room, or name "
            "another folder as cache_dir"
        ) from None


class _DecompressedStream(io.RawIOBase):
    """A packed file as the bytes it holds, however many frames it is packed in."""

    def __init__(self, compressed_file: io.FileIO, path: Path) -> None:
        self._path, self._compressed_file = path, compressed_file
        self._compression = _zstd() if path.suffix == ".zst" else _GZIP
        self._decompressor: Any = None  # the decompressor of the frame begun
        self._leftover, self._buffered = b"", memoryview(b"")
        self.bytes_read = 0  # bytes read of the packed file

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._compressed_file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._buffered:
            if not self._decompress_next():
                return 0
        size = min(len(buffer), len(self._buffered))
        buffer[:size] = self._buffered[:size]
        self._buffered = self._buffered[size:]
        return size

    def _decompress_next(self) -> bool:
        """Unpacks some more; False: there is no more."""
        data = self._leftover or self._compressed_file.read(self._compression.block_bytes) or b""
        self.bytes_read += 0 if self._leftover else len(data)
        self._leftover = b""
        if not data:
            if self._decompressor is not None:
                raise UserError(f"{self._path}: the file is cut off; copy or download it again")
            return False
        if self._decompressor is None:
            if self._path.suffix == ".gz" and self.bytes_read > len(data):
                data = data.lstrip(b"\0")  # tapes and some tools fill up with zeros
                if not data:
                    return True
            self._decompressor = self._compression.make_decompressor()
        try:
            self._buffered = memoryview(self._decompressor.decompress(data))
        except self._compression.error as error:
            raise UserError(
                f"{self._path}: not a whole {self._path.suffix} file ({error}); "
                "copy or download it again"
            ) from None
        if self._decompressor.eof:
            self._leftover, self._decompressor = self._decompressor.unused_data, None
        return True


class _Compression(NamedTuple):
    make_decompressor: Callable[[], Any]  # makes a decompressor of one frame
    error: type[Exception]  # that it raises
    block_bytes: int  # packed bytes given to it at once


_GZIP = _Compression(lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), zlib.error, 1 << 16)


def _zstd() -> _Compression:
    block = 1 << 11  # four bytes can stand for 128 KB, so a little at a time keeps memory flat
    if sys.version_info >= (3, 14):
        from compression import zstd

        return _Compression(zstd.ZstdDecompressor, zstd.ZstdError, block)
    try:
        import zstandard
    except ImportError:
        raise UserError(
            '.zst files need the package zstandard; pip install "miniformer[zstd]", '
            "or pack the file as .gz"
        ) from None
    new = zstandard.ZstdDecompressor
    return _Compression(lambda: new().decompressobj(), zstandard.ZstdError, block)
