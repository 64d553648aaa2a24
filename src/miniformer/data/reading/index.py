"""Byte-offset indexes of data files: built once, cached on disk, used for random access.

A record of a `.jsonl` file is a line that is not blank. A record of a `.txt` file is a block of
about `TEXT_BLOCK_BYTES` that ends at a line end. Other formats have their own rule (`formats`).
Letters: n records, m blank lines.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading import files
from miniformer.data.reading.decompression import decompress_file
from miniformer.data.reading.files import ProgressCallback, RandomAccessFile, text_start
from miniformer.data.reading.formats.base import TextFormat
from miniformer.data.reading.parsing import (
    DataError,
    Mapper,
    Record,
    RecordError,
    check_record,
    parse_line,
    parse_text_block,
)
from miniformer.data.reading.record_index import RecordIndex, cache_key, load_index, save_index
from miniformer.data.reading.schema import Checks

MAX_LINE_BYTES = 64 << 20
TEXT_BLOCK_BYTES = 64 << 10
MAX_TEXT_BLOCK_BYTES = 1 << 20  # for text without line ends; at least 4, the bytes of a character
MIN_CACHED_FILE_BYTES = 64 << 20  # indexing a smaller file is faster than loading a cached index

_SCAN_BYTES = 8 << 20
_LINE_END_SEARCH_BYTES = 4 << 10
_MAX_READ_BYTES = 1 << 20  # per read of neighboring records
_MAX_GAP_BYTES = 4 << 10
_ROWS_PER_READ = 1024
_NEWLINE = 10
_IS_SPACE = np.array([bytes([value]).isspace() for value in range(256)])


class IndexedFile:
    """Data file with random access to its records; can be pickled.

    Args:
        name: the file.
        is_plain_text: whether the file is plain text instead of JSON lines.
        make_format: makes the format of the open file; None: JSON lines or plain text.
        cache_dir: folder of the index and of the decompressed file; None: the default folder, and
            no stored index for a small file.
        progress: called with (file name, bytes done, total bytes) during decompression and
            indexing.

    Raises:
        UserError: the file cannot be read, or is empty.
        RecordError: a line is too long.
    """

    def __init__(
        self,
        name: Path,
        *,
        is_plain_text: bool = False,
        make_format: Callable[[RandomAccessFile], TextFormat] | None = None,
        cache_dir: Path | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.name, self.is_plain_text, self.cache_dir = name, is_plain_text, cache_dir
        _, compression = files.parse_suffixes(name)
        self.path = name
        if compression:
            self.path = decompress_file(name, files.get_cache_dir(cache_dir), progress)
        self._handle: RandomAccessFile | None = RandomAccessFile(self.path, name)
        self.stat = self._handle.stat
        files.reject_binary(self._handle)
        self.format = None if make_format is None else make_format(self._handle)
        self.is_table = self.format is not None and self.format.is_table
        self._index: RecordIndex | None = None
        self._line_numbers: np.ndarray | None = None
        self._index_on_disk = False
        self._load_or_build_index(progress)
        if len(self) == 0:
            raise UserError(f"{name}: the file is empty; it needs at least one record")

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        # The unpickling process opens the file again, and the index if it is stored on disk.
        return {
            **self.__dict__, "_handle": None, "_index": None if self._index_on_disk else self._index
        }  # fmt: skip

    @property
    def index(self) -> RecordIndex:
        """Byte offsets of the records."""
        return self._index or self._load_or_build_index()

    @property
    def n_bytes(self) -> int:
        """Bytes of all records."""
        return self.index.n_bytes

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each record, line end included, int64 [n]."""
        starts, ends = self.index.byte_spans(np.arange(len(self)))
        return np.asarray(ends - starts)

    def line_number(self, row: int) -> int:
        """Line number of the start of a record."""
        if not self.is_plain_text and self.format is None:
            return self.index.line_number(row)
        if self._line_numbers is None:  # only messages need them
            self._line_numbers = self._count_lines()
        return int(self._line_numbers[row])

    def parse(
        self,
        raw: Any,
        row: int,
        checks: Checks,
        mapper: Mapper | None,
    ) -> Record:
        """The record of the bytes of a row.

        Args:
            raw, row: bytes of a record, and its number.
            checks: checks of its fields.
            mapper: adds fields from columns; None: columns have the names of fields.

        Raises:
            DataError: the bytes are not a record, or a check fails.
        """
        if self.is_plain_text:
            return parse_text_block(raw, checks, continues=row > 0)
        if self.format is None:
            return parse_line(raw, checks, mapper)
        record = self.format.parse(raw)
        if mapper is not None and not self.format.is_mapped:
            record = mapper(record)
        return check_record(record, checks)

    def table_rows(self) -> Iterator[Record]:
        """Yields the cells of the rows of a table, without those that are not valid."""
        assert self.format is not None
        for start in range(0, len(self), _ROWS_PER_READ):
            for raw in self.read(range(start, min(start + _ROWS_PER_READ, len(self)))):
                with contextlib.suppress(DataError):
                    yield self.format.parse(raw)

    def _count_lines(self) -> np.ndarray:
        """Line number of the start of each record, int64 [n]."""
        starts, line, position = self.index.starts[:-1], 1, 0
        parts = []
        while position < self.stat.size:
            block = self._open().read(min(_SCAN_BYTES, self.stat.size - position), position)
            ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == _NEWLINE) + position
            inside = starts[(starts >= position) & (starts < position + len(block))]
            parts.append(line + np.searchsorted(ends, inside))
            line, position = line + len(ends), position + len(block)
        return np.concatenate(parts)

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """Yields the bytes of records; `rows` are ascending, and neighbors are read together.

        Raises:
            UserError: the file has changed since it was indexed.
        """
        starts, ends = (offsets.tolist() for offsets in self.index.byte_spans(np.asarray(rows)))
        handle, first = self._open(), 0
        while first < len(starts):
            stop = first + 1
            while (
                stop < len(starts)
                and starts[stop] - ends[stop - 1] <= _MAX_GAP_BYTES
                and ends[stop] - starts[first] <= _MAX_READ_BYTES
            ):
                stop += 1
            offset = starts[first]
            block = handle.read(ends[stop - 1] - offset, offset)
            for i in range(first, stop):
                yield block[starts[i] - offset : ends[i] - offset]
            first = stop

    def close(self) -> None:
        """Closes the file until the next read."""
        self._handle = None

    def _open(self) -> RandomAccessFile:
        # Another thread may call `close`, so the caller holds its own reference to the handle.
        self._handle = handle = self._handle or RandomAccessFile(self.path, self.name, self.stat)
        return handle

    def _load_or_build_index(self, progress: ProgressCallback | None = None) -> RecordIndex:
        """Loads the cached index, or builds it."""
        handle = self._open()
        build = _index_text if self.is_plain_text else index_lines
        if self.format is not None:
            build = self.format.build_index
        if self.cache_dir is None and self.stat.size <= MIN_CACHED_FILE_BYTES:
            index = build(handle, progress)
        else:
            folder = files.get_cache_dir(self.cache_dir)
            options: tuple[object, ...] = (MAX_LINE_BYTES,)
            if self.is_plain_text:
                options = (TEXT_BLOCK_BYTES, MAX_TEXT_BLOCK_BYTES)
            elif self.format is not None:
                options = (MAX_LINE_BYTES, *self.format.cache_key)
            key = cache_key(files.fingerprint(handle, self.path), options)
            path = folder / f"{key.hex()}.npy"
            index = load_index(path, key, handle) or save_index(
                build(handle, progress), path, key, handle
            )
            self._index_on_disk = path.exists()
        handle.check_unchanged()
        self._index = index
        return index


def next_text_block_end(read: Callable[[int, int], bytes], start: int, size: int) -> int:
    """End offset of the block at `start` of a text of `size` bytes.

    `read` is (size, offset) -> bytes of the text.
    """
    if size - start <= TEXT_BLOCK_BYTES:
        return size
    position, limit = start + TEXT_BLOCK_BYTES - 1, min(start + MAX_TEXT_BLOCK_BYTES, size)
    while position < limit:
        block = read(min(_LINE_END_SEARCH_BYTES, limit - position), position)
        if (index := block.find(b"\n")) >= 0:
            return position + index + 1
        position += len(block)
    if limit == size:
        return size
    last_bytes = read(4, limit - 3)
    # Bytes 10xxxxxx continue a character, which has at most three of them.
    return next((limit - k for k in range(4) if last_bytes[3 - k] & 0xC0 != 0x80), limit)


def line_too_long_error(name: Path | str, line: int, num_bytes: str) -> RecordError:
    """Error for a line above MAX_LINE_BYTES."""
    return RecordError(
        name,
        line,
        f"the line has {num_bytes} bytes; the limit is {MAX_LINE_BYTES:,}; "
        "put one object on each line",
    )


def index_lines(handle: RandomAccessFile, progress: ProgressCallback | None) -> RecordIndex:
    """Indexes the lines of a file that are not blank, chunk by chunk."""
    size = handle.stat.size
    line_start = position = text_start(handle)  # start of the current, incomplete line
    is_blank, num_lines = True, 0  # state of the current line; number of lines before it
    starts, next_rows, blank_starts = array("q"), array("q"), array("q")

    def add_lines(line_starts: np.ndarray, line_ends: np.ndarray, blank: np.ndarray) -> None:
        too_long = (line_ends - line_starts > MAX_LINE_BYTES) & ~blank
        if too_long.any():
            i = int(too_long.argmax())
            raise line_too_long_error(
                handle.name, num_lines + i + 1, f"{line_ends[i] - line_starts[i]:,}"
            )
        rows = len(starts) + np.cumsum(~blank)[blank]
        starts.frombytes(line_starts[~blank].tobytes())
        next_rows.frombytes(rows.astype(np.int64).tobytes())
        blank_starts.frombytes(line_starts[blank].tobytes())

    buffer = np.empty(min(_SCAN_BYTES, size + 1), dtype=np.uint8)
    while count := handle.read_into(buffer.data, position):
        chunk = buffer[:count]
        ends = np.flatnonzero(chunk == _NEWLINE) + 1
        tail = 0
        if len(ends):
            heads = np.concatenate([[0], ends[:-1]])
            blank = _IS_SPACE[chunk[heads]]
            blank[0] &= is_blank
            if (blank & (ends - heads > 2)).any():  # starts with a space, longer than a line end
                blank &= np.logical_and.reduceat(_IS_SPACE[chunk[: ends[-1]]], heads)
            line_starts = heads + position
            line_starts[0] = line_start
            add_lines(line_starts, ends + position, blank)
            tail = int(ends[-1])
            line_start, is_blank, num_lines = position + tail, True, num_lines + len(ends)
        is_blank = is_blank and bool(_IS_SPACE[chunk[tail:]].all())
        position += count
        if progress:
            progress(str(handle.name), position, size)
    if line_start < position:  # the last line has no line end
        add_lines(np.array([line_start]), np.array([position]), np.array([is_blank]))
    starts.append(position)
    blank_lines = np.array([next_rows, blank_starts], dtype=np.int64)
    return RecordIndex(np.frombuffer(starts, dtype=np.int64), blank_lines)


def _index_text(handle: RandomAccessFile, progress: ProgressCallback | None) -> RecordIndex:
    """Indexes the blocks of plain text, reading only around the block ends."""
    size = handle.stat.size
    starts = array("q", [text_start(handle)])
    while starts[-1] < size:
        starts.append(next_text_block_end(handle.read, starts[-1], size))
        if progress:
            progress(str(handle.name), starts[-1], size)
    return RecordIndex(np.frombuffer(starts, dtype=np.int64), np.empty((2, 0), dtype=np.int64))
