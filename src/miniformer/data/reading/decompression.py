"""Decompression of `.gz` and `.zst` files."""

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
    """Opens a file for sequential reading, decompressed on the fly.

    Raises:
        UserError: the file cannot be opened; reads raise it too, for corrupt compressed data.
    """
    file = open_file(path, regular=False)
    if path.suffix.lower() not in COMPRESSIONS:
        return io.BufferedReader(file, _BLOCK_BYTES)
    try:
        return io.BufferedReader(_DecompressedStream(file, path), _BLOCK_BYTES)
    except UserError:
        file.close()
        raise


def decompress_file(path: Path, cache_dir: Path, progress: ProgressCallback | None = None) -> Path:
    """Decompresses a file into `cache_dir`, unless a cached copy exists, and returns its path.

    `progress` is called with (file name, compressed bytes read, total compressed bytes).

    Raises:
        UserError: the file is corrupt or truncated, or the disk is full; no partial file remains.
    """
    handle = RandomAccessFile(path, path)
    key = fingerprint(handle, path)
    file_type, _ = parse_suffixes(path)
    for cached in cache_dir.glob(f"{key}-*{file_type}"):
        if cached.name == f"{key}-{cached.stat().st_size}{file_type}":
            return cached

    try:
        with PendingFile(cache_dir) as pending:
            size = 0
            with (
                _DecompressedStream(open_file(path), path) as stream,
                pending.path.open("wb") as file,
            ):
                while block := stream.read(_BLOCK_BYTES):
                    size += file.write(block)
                    if progress:
                        progress(str(path), stream.bytes_read, handle.stat.size)
            handle.check_unchanged()
            decompressed = cache_dir / f"{key}-{size}{file_type}"
            pending.commit(decompressed)
            return decompressed
    except OSError as error:
        raise UserError(
            f"{path}: cannot decompress it into {cache_dir}: {error.strerror}; free disk space, "
            "or set another cache_dir"
        ) from None


class _DecompressedStream(io.RawIOBase):
    """Decompressed bytes of a file with one or more compressed frames."""

    def __init__(self, compressed_file: io.FileIO, path: Path) -> None:
        self._path, self._compressed_file = path, compressed_file
        self._compression = _zstd() if path.suffix.lower() == ".zst" else _GZIP
        self._decompressor: Any = None  # of the current frame
        self._leftover, self._buffered = b"", memoryview(b"")
        self.bytes_read = 0  # compressed bytes

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
        """Decompresses the next block; returns False at the end."""
        data = self._leftover or self._compressed_file.read(self._compression.block_bytes) or b""
        self.bytes_read += 0 if self._leftover else len(data)
        self._leftover = b""
        if not data:
            if self._decompressor is not None:
                raise UserError(f"{self._path}: the file is cut off; copy or download it again")
            return False
        if self._decompressor is None:
            if self._path.suffix.lower() == ".gz" and self.bytes_read > len(data):
                data = data.lstrip(b"\0")  # tapes and some tools pad with zeros
                if not data:
                    return True
            self._decompressor = self._compression.make_decompressor()
        try:
            self._buffered = memoryview(self._decompressor.decompress(data))
        except self._compression.error as error:
            raise UserError(
                f"{self._path}: not a valid {self._path.suffix} file ({error}); "
                "copy or download it again"
            ) from None
        if self._decompressor.eof:
            self._leftover, self._decompressor = self._decompressor.unused_data, None
        return True


class _Compression(NamedTuple):
    make_decompressor: Callable[[], Any]  # of one frame
    error: type[Exception]  # raised by the decompressor
    block_bytes: int  # compressed bytes per call


_GZIP = _Compression(lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), zlib.error, 1 << 16)


def _zstd() -> _Compression:
    block = 1 << 11  # four bytes can expand to 128 KB, so small blocks bound the memory
    if sys.version_info >= (3, 14):
        from compression import zstd

        return _Compression(zstd.ZstdDecompressor, zstd.ZstdError, block)
    try:
        import zstandard
    except ImportError:
        raise UserError(
            '.zst files need the package zstandard; pip install "miniformer[zstd]", '
            "or compress the file as .gz"
        ) from None
    return _Compression(
        lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError, block
    )
