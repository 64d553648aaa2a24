"""Where the records of a file lie: found once, kept in a cache, and read from anywhere in the file.

A record of a `.jsonl` file is a line that is not blank; one of a `.txt` file is a piece of about
`PIECE_BYTES` that ends where a line ends. Letters: n records, m blank lines.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading import files
from miniformer.data.reading.decompression import decompress_file
from miniformer.data.reading.files import ProgressCallback, RandomAccessFile
from miniformer.data.reading.parsing import RecordError
from miniformer.utils.atomic import atomic_path

MAX_LINE_BYTES = 64 << 20
PIECE_BYTES = 64 << 10
MAX_PIECE_BYTES = 1 << 20  # for text without line ends; at least four, or no character fits
MIN_CACHED_FILE_BYTES = 64 << 20  # a smaller file is indexed faster than its index is looked for

_SCAN_BYTES = 8 << 20
_LINE_END_SEARCH_BYTES = 4 << 10
_MAX_READ_BYTES = 1 << 20  # read at once of records that lie side by side
_MAX_GAP_BYTES = 4 << 10
_NEWLINE = 10
_IS_SPACE = np.array([bytes([value]).isspace() for value in range(256)])
_INDEX_FORMAT_VERSION = 1  # of a cached index; to be raised when what it holds changes
_HEADER_LENGTH = 8


@dataclass(frozen=True)
class RecordIndex:
    """The place of each record.

    Args:
        starts: the byte at which each record begins, then the end of the file, int64 [n + 1].
        blanks: of each blank line, the record that comes next and the byte at which the line
            begins, int64 [2, m].
    """

    starts: np.ndarray
    blank_lines: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def byte_spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First byte of some records and the byte past their last, int64 [len(rows)] each."""
        ends = self.starts[rows + 1]
        after, begins = self.blank_lines
        if len(after):  # a record ends where the first blank line after it begins
            first = np.minimum(np.searchsorted(after, rows + 1), len(after) - 1)
            ends = np.where(after[first] == rows + 1, begins[first], ends)
        return self.starts[rows], ends

    @property
    def n_bytes(self) -> int:
        """Bytes of all records; what the blank lines between them take does not count."""
        after, first = np.unique(self.blank_lines[0], return_index=True)
        inside = after > 0  # blank lines before the first record lie outside of all
        gaps = self.starts[after[inside]] - self.blank_lines[1][first[inside]]
        return int(self.starts[-1] - self.starts[0] - gaps.sum())

    def line_number(self, row: int) -> int:
        """The number of the line at which a record of a `.jsonl` file lies."""
        return row + 1 + int(np.searchsorted(self.blank_lines[0], row, side="right"))


class IndexedFile:
    """A data file whose records can be read in any order; it may be pickled.

    Args:
        name: the file.
        plain: whether it is running text.
        cache_dir: where to keep its index and, of a packed file, what it holds; None: the default
            folder, and of a small file no index.
        progress: told the name, the bytes done and all bytes while the file is unpacked or indexed.

    Raises:
        UserError: it cannot be read, or is empty.
        RecordError: a line is too long.
    """

    def __init__(
        self,
        name: Path,
        *,
        is_plain_text: bool,
        cache_dir: Path | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.name, self.is_plain_text, self.cache_dir = name, is_plain_text, cache_dir
        _, packing = files.parse_suffixes(name)
        self.path = (
            decompress_file(name, files.get_cache_dir(cache_dir), progress) if packing else name
        )
        self._handle: RandomAccessFile | None = RandomAccessFile(self.path, name)
        self.stat = self._handle.stat
        self._index: RecordIndex | None = None
        self._index_on_disk = False
        self._load_or_build_index(progress)
        if len(self) == 0:
            raise UserError(f"{name}: the file is empty; it needs at least one record")

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        # Whoever unpickles opens the file itself, and its index too where that is another file.
        return {
            **self.__dict__, "_handle": None, "_index": None if self._index_on_disk else self._index
        }  # fmt: skip

    @property
    def index(self) -> RecordIndex:
        """Where its records lie."""
        return self._index or self._load_or_build_index()

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each record, line end and all, int64 [n]."""
        begins, ends = self.index.byte_spans(np.arange(len(self)))
        return np.asarray(ends - begins)

    def line_number(self, row: int) -> int:
        """The number of the line at which a record begins."""
        if not self.is_plain_text:
            return self.index.line_number(row)
        # Only messages want this of running text, so its lines are counted when they do.
        lines, position, start = 1, 0, int(self.index.starts[row])
        while position < start:
            block = self._open().read(min(_SCAN_BYTES, start - position), position)
            lines, position = lines + block.count(b"\n"), position + len(block)
        return lines

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The bytes of some records, in ascending order; neighbours are read together.

        Raises:
            UserError: the file has changed since it was indexed.
        """
        begins, ends = (spans.tolist() for spans in self.index.byte_spans(np.asarray(rows)))
        handle, first = self._open(), 0
        while first < len(begins):
            last = first + 1
            while (
                last < len(begins)
                and begins[last] - ends[last - 1] <= _MAX_GAP_BYTES
                and ends[last] - begins[first] <= _MAX_READ_BYTES
            ):
                last += 1
            offset = begins[first]
            block = handle.read(ends[last - 1] - offset, offset)
            for row in range(first, last):
                yield block[begins[row] - offset : ends[row] - offset]
            first = last

    def close(self) -> None:
        """Lets go of the file until the next read."""
        self._handle = None

    def _open(self) -> RandomAccessFile:
        # Another thread may close at any time, so the handle in use is held by its own name.
        self._handle = handle = self._handle or RandomAccessFile(self.path, self.name, self.stat)
        return handle

    def _load_or_build_index(self, progress: ProgressCallback | None = None) -> RecordIndex:
        """Indexes the file, or opens the index that is kept of it."""
        handle = self._open()
        build = _index_text if self.is_plain_text else _index_lines
        if self.cache_dir is None and self.stat.size <= MIN_CACHED_FILE_BYTES:
            index = build(handle, progress)
        else:
            folder = files.get_cache_dir(self.cache_dir)
            key = _cache_key(files.fingerprint(handle, self.path), self.is_plain_text)
            path = folder / f"{key.hex()}.npy"
            index = _load_index(path, key, handle) or _save_index(
                build(handle, progress), path, key, handle
            )
            self._index_on_disk = path.exists()
        handle.check_unchanged()
        self._index = index
        return index


def next_piece_end(read: Callable[[int, int], bytes], start: int, size: int) -> int:
    """Where the piece of running text ends that begins at `start`.

    Args:
        read: gives so many bytes from an offset on.
        start: where the piece begins.
        size: where the text ends.
    """
    if size - start <= PIECE_BYTES:
        return size
    position, limit = start + PIECE_BYTES - 1, min(start + MAX_PIECE_BYTES, size)
    while position < limit:
        block = read(min(_LINE_END_SEARCH_BYTES, limit - position), position)
        if (at := block.find(b"\n")) >= 0:
            return position + at + 1
        position += len(block)
    if limit == size:
        return size
    around = read(4, limit - 3)
    # Bytes 10xxxxxx continue a character; three of them at most.
    return next((limit - k for k in range(4) if around[3 - k] & 0xC0 != 0x80), limit)


def line_too_long_error(name: Path | str, line: int, num_bytes: str) -> RecordError:
    """The error of a line that holds more than anybody would want to have in memory."""
    return RecordError(
        name,
        line,
        f"the line has {num_bytes} bytes, and at most {MAX_LINE_BYTES:,} are read; "
        "put one object on each line",
    )


def _index_lines(handle: RandomAccessFile, progress: ProgressCallback | None) -> RecordIndex:
    """The lines of a file that are not blank, found a chunk at a time."""
    size = handle.stat.size
    begin = position = _text_offset(handle)  # `begin` is that of the line not yet ended
    blank, lines = True, 0  # whether that line is so far, and how many there are before it
    starts, after, begins_blank = array("q"), array("q"), array("q")

    def take(begins: np.ndarray, ends: np.ndarray, blanks: np.ndarray) -> None:
        long = (ends - begins > MAX_LINE_BYTES) & ~blanks
        if long.any():
            at = int(long.argmax())
            raise line_too_long_error(handle.name, lines + at + 1, f"{ends[at] - begins[at]:,}")
        before = len(starts) + np.cumsum(~blanks)[blanks]
        starts.frombytes(begins[~blanks].tobytes())
        after.frombytes(before.astype(np.int64).tobytes())
        begins_blank.frombytes(begins[blanks].tobytes())

    buffer = np.empty(min(_SCAN_BYTES, size + 1), dtype=np.uint8)
    while count := handle.read_into(buffer.data, position):
        chunk = buffer[:count]
        ends = np.flatnonzero(chunk == _NEWLINE) + 1
        rest = 0
        if len(ends):
            heads = np.concatenate([[0], ends[:-1]])
            blanks = _IS_SPACE[chunk[heads]]
            blanks[0] &= blank
            if (blanks & (ends - heads > 2)).any():  # a space, and not only the line end after it
                blanks &= np.logical_and.reduceat(_IS_SPACE[chunk[: ends[-1]]], heads)
            begins = heads + position
            begins[0] = begin
            take(begins, ends + position, blanks)
            rest = int(ends[-1])
            begin, blank, lines = position + rest, True, lines + len(ends)
        blank = blank and bool(_IS_SPACE[chunk[rest:]].all())
        position += count
        if progress:
            progress(str(handle.name), position, size)
    if begin < position:  # the last line has no end
        take(np.array([begin]), np.array([position]), np.array([blank]))
    starts.append(position)
    blanks = np.array([after, begins_blank], dtype=np.int64)
    return RecordIndex(np.frombuffer(starts, dtype=np.int64), blanks)


def _index_text(handle: RandomAccessFile, progress: ProgressCallback | None) -> RecordIndex:
    """The pieces of running text; only what lies around the cuts is read."""
    size = handle.stat.size
    starts = array("q", [_text_offset(handle)])
    while starts[-1] < size:
        starts.append(next_piece_end(handle.read, starts[-1], size))
        if progress:
            progress(str(handle.name), starts[-1], size)
    return RecordIndex(np.frombuffer(starts, dtype=np.int64), np.empty((2, 0), dtype=np.int64))


def _text_offset(handle: RandomAccessFile) -> int:
    mark = files.BYTE_ORDER_MARK
    return len(mark) if handle.read(min(len(mark), handle.stat.size), 0) == mark else 0


def _cache_key(fingerprint: str, is_plain_text: bool) -> bytes:
    """What an index depends on, in 32 bytes."""
    limits = (PIECE_BYTES, MAX_PIECE_BYTES) if is_plain_text else (MAX_LINE_BYTES,)
    return hashlib.blake2b(
        repr((fingerprint, _INDEX_FORMAT_VERSION, limits)).encode(), digest_size=32
    ).digest()


def _save_index(
    index: RecordIndex, path: Path, key: bytes, handle: RandomAccessFile
) -> RecordIndex:
    """Writes an index to the cache and returns it as it is read from there."""
    handle.check_unchanged()
    parts = [index.starts, index.blank_lines.ravel()]
    checksum = zlib.crc32(parts[1].data, zlib.crc32(parts[0].data))
    header = [
        *np.frombuffer(key, dtype=np.int64),
        len(index),
        index.blank_lines.shape[1],
        checksum,
        0,
    ]
    parts.insert(0, np.array(header, dtype=np.int64))

    shape = (sum(map(len, parts)),)
    described = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": shape}
    try:
        with atomic_path(path) as tmp_path, tmp_path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, described)
            for part in parts:
                file.write(part.data)
    except OSError:  # no room, or a cache that others fill: the index in memory does as well
        return index
    return _load_index(path, key, handle) or index


def _load_index(path: Path, key: bytes, handle: RandomAccessFile) -> RecordIndex | None:
    """The index that is kept at `path`, still on disk; None: there is none that can be trusted."""
    try:
        whole = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except Exception:  # numpy raises many kinds over a file that is not its own
        return None
    if whole.dtype != np.int64 or whole.ndim != 1 or len(whole) < _HEADER_LENGTH + 1:
        return None
    n, m, checksum = whole[4:7].tolist()
    if whole[:4].tobytes() != key or min(n, m) < 0 or len(whole) != _HEADER_LENGTH + n + 1 + 2 * m:
        return None
    if (
        zlib.crc32(whole[_HEADER_LENGTH:].data) != checksum
        or whole[_HEADER_LENGTH + n] != handle.stat.size
    ):
        return None
    body = whole[_HEADER_LENGTH:]
    return RecordIndex(body[: n + 1], body[n + 1 :].reshape(2, m))
