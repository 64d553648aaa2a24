"""RecordIndex: byte offsets of the records of a file, and the copy of an index on disk.

Letters: n records, m blank lines.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miniformer.data.reading.files import RandomAccessFile
from miniformer.utils.atomic import atomic_path

_INDEX_FORMAT_VERSION = 1  # increase it when the content of a cached index changes
_HEADER_LENGTH = 8


@dataclass(frozen=True)
class RecordIndex:
    """Byte offsets of records.

    Args:
        starts: start of each record, then the end of the file, int64 [n + 1].
        blank_lines: for each blank line, the next record and the line's start, int64 [2, m].
    """

    starts: np.ndarray
    blank_lines: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def byte_spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start and end offsets of records, int64 [len(rows)] each."""
        ends = self.starts[rows + 1]
        next_rows, blank_starts = self.blank_lines
        if len(next_rows):  # a record ends where the first blank line after it starts
            first = np.minimum(np.searchsorted(next_rows, rows + 1), len(next_rows) - 1)
            ends = np.where(next_rows[first] == rows + 1, blank_starts[first], ends)
        return self.starts[rows], ends

    @property
    def n_bytes(self) -> int:
        """Bytes of all records, without blank lines."""
        next_rows, first = np.unique(self.blank_lines[0], return_index=True)
        inside = next_rows > 0  # blank lines before the first record are not between records
        gaps = self.starts[next_rows[inside]] - self.blank_lines[1][first[inside]]
        return int(self.starts[-1] - self.starts[0] - gaps.sum())

    def line_number(self, row: int) -> int:
        """Line number of a record of a `.jsonl` file."""
        return row + 1 + int(np.searchsorted(self.blank_lines[0], row, side="right"))


def cache_key(fingerprint: str, options: tuple[object, ...]) -> bytes:
    """Hash of everything that an index depends on, 32 bytes."""
    return hashlib.blake2b(
        repr((fingerprint, _INDEX_FORMAT_VERSION, options)).encode(), digest_size=32
    ).digest()


def save_index(index: RecordIndex, path: Path, key: bytes, handle: RandomAccessFile) -> RecordIndex:
    """Writes an index to the cache and returns the memory-mapped copy."""
    handle.check_unchanged()
    arrays = [index.starts, index.blank_lines.ravel()]
    checksum = zlib.crc32(arrays[1].data, zlib.crc32(arrays[0].data))
    counts = [len(index), index.blank_lines.shape[1]]
    header = [*np.frombuffer(key, dtype=np.int64), *counts, checksum, 0]
    arrays.insert(0, np.array(header, dtype=np.int64))

    shape = (sum(map(len, arrays)),)
    npy_header = {"descr": arrays[0].dtype.str, "fortran_order": False, "shape": shape}
    try:
        with atomic_path(path) as tmp_path, tmp_path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, npy_header)
            for values in arrays:
                file.write(values.data)
    except OSError:  # the disk is full or the cache is not writable: use the index in memory
        return index
    return load_index(path, key, handle) or index


def load_index(path: Path, key: bytes, handle: RandomAccessFile) -> RecordIndex | None:
    """Memory-mapped index at `path`; None: missing, invalid, or of another file."""
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except Exception:  # numpy raises many types for invalid files
        return None
    if data.dtype != np.int64 or data.ndim != 1 or len(data) < _HEADER_LENGTH + 1:
        return None
    n, m, checksum = data[4:7].tolist()
    body = data[_HEADER_LENGTH:]
    if data[:4].tobytes() != key or min(n, m) < 0 or len(body) != n + 1 + 2 * m:
        return None
    if zlib.crc32(body.data) != checksum or body[n] != handle.stat.size:
        return None
    return RecordIndex(body[: n + 1], body[n + 1 :].reshape(2, m))
