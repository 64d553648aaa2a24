"""Rows of delimited text (RFC 4180): boundaries of records, and their cells.

A cell that starts with a double quote ends at the next one; between them, two quotes stand for one,
and delimiters and line ends are text. Other quotes are ordinary characters.
"""

from __future__ import annotations

import dataclasses
import re
from array import array

import numpy as np

from miniformer.data.reading import index as indexes
from miniformer.data.reading.files import ProgressCallback, RandomAccessFile
from miniformer.data.reading.parsing import DataError, RecordError
from miniformer.data.reading.record_index import RecordIndex

_QUOTED_CELL = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')
_QUOTED_REST = re.compile(rb'[^"]*+(?:""[^"]*+)*+')
_SCAN_BYTES = 8 << 20
_NEWLINE, _RETURN, _QUOTE = 10, 13, 34


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Grammar of the rows of a file.

    Args:
        delimiter: one ASCII character.
        is_quoted: true if cells may be quoted.
    """

    delimiter: str
    is_quoted: bool = True

    def split(self, text: str) -> list[str]:
        """The cells of a row, given without its line end.

        Raises:
            DataError: a quote is not closed, or text follows a closing quote.
        """
        delimiter = self.delimiter
        if not self.is_quoted or '"' not in text:
            return text.split(delimiter)
        cells, position = list[str](), 0
        while True:
            if text.startswith('"', position):
                match = _QUOTED_CELL.match(text, position)
                if match is None:
                    raise DataError(
                        f"the quote that opens cell {len(cells) + 1} does not close; close it, "
                        "write quotes within a quoted cell twice, or set --quoting none if quotes "
                        "are ordinary characters"
                    )
                cells.append(match[1].replace('""', '"'))
                position = match.end()
                if position < len(text) and text[position] != delimiter:
                    raise DataError(
                        f"text follows the closing quote of cell {len(cells)}: "
                        f"{text[position : position + 20]!r}; write quotes within a quoted cell "
                        "twice, or set --quoting none if quotes are ordinary characters (an "
                        "earlier quote may not be closed)"
                    )
            else:
                end = text.find(delimiter, position)
                end = len(text) if end < 0 else end
                cells.append(text[position:end])
                position = end
            if position == len(text):
                return cells
            position += 1

    def ends_in_quotes(self, line: bytes, in_quotes: bool) -> bool:
        """Returns whether a line ends within a quoted cell, given whether it begins in one."""
        position = 0
        if not in_quotes and line.startswith(b'"'):
            in_quotes, position = True, 1
        opening = self.delimiter.encode() + b'"'
        while True:
            if in_quotes:
                match = _QUOTED_REST.match(line, position)
                position = match.end() if match else position
                if position == len(line):
                    return True
                position += 1
            index = line.find(opening, position)
            if index < 0:
                return False
            in_quotes, position = True, index + 2


def index_rows(
    handle: RandomAccessFile, start: int, dialect: Dialect, progress: ProgressCallback | None
) -> RecordIndex:
    """Indexes the rows of a file from the offset `start`; empty lines between rows are blank."""
    size = handle.stat.size
    starts, next_rows, blank_starts = array("q"), array("q"), array("q")
    position = read_position = start
    carry, in_quotes = b"", False
    while read_position < size:
        block = handle.read(min(_SCAN_BYTES, size - read_position), read_position)
        read_position += len(block)
        block = carry + block
        end = len(block) if read_position == size else block.rfind(b"\n") + 1
        chunk, carry = block[:end], block[end:]
        if chunk:
            line_starts, begins, in_quotes = _row_starts(chunk, dialect, in_quotes)
            blank = begins & _is_empty_line(chunk, line_starts)
            is_row = begins & ~blank
            rows = len(starts) + np.cumsum(is_row)[blank]
            starts.frombytes((line_starts[is_row] + position).astype(np.int64).tobytes())
            next_rows.frombytes(rows.astype(np.int64).tobytes())
            blank_starts.frombytes((line_starts[blank] + position).astype(np.int64).tobytes())
        position += end
        if len(carry) > indexes.MAX_LINE_BYTES:
            break
        if progress:
            progress(str(handle.name), read_position, size)
    starts.append(size)
    offsets = np.frombuffer(starts, dtype=np.int64)
    too_long = np.flatnonzero(np.diff(offsets) > indexes.MAX_LINE_BYTES)
    if len(too_long):
        first = int(offsets[too_long[0]])
        raise RecordError(
            handle.name, _count_lines(handle, first),
            f"the row has more than {indexes.MAX_LINE_BYTES:,} bytes; a quote may not be closed",
        )  # fmt: skip
    return RecordIndex(offsets, np.array([next_rows, blank_starts], dtype=np.int64))


def _row_starts(
    chunk: bytes, dialect: Dialect, in_quotes: bool
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Line starts of a chunk of whole lines, which of them begin a row, and the state at its end.

    Returns:
        int64 [n], bool [n], and whether the chunk ends within a quoted cell.
    """
    values = np.frombuffer(chunk, dtype=np.uint8)
    ends = np.flatnonzero(values == _NEWLINE) + 1
    if not chunk.endswith(b"\n"):
        ends = np.append(ends, len(chunk))
    line_starts = np.concatenate([[0], ends[:-1]])
    begins = np.ones(len(ends), dtype=bool)
    if dialect.is_quoted:
        quotes = np.flatnonzero(values == _QUOTE)
        after = 0  # line after the last one with a quote
        for line in np.unique(np.searchsorted(ends, quotes, side="right")).tolist():
            if in_quotes:
                begins[after : line + 1] = False
            in_quotes = dialect.ends_in_quotes(chunk[line_starts[line] : ends[line]], in_quotes)
            after = line + 1
        if in_quotes:
            begins[after:] = False
    return line_starts, begins, in_quotes


def _is_empty_line(chunk: bytes, line_starts: np.ndarray) -> np.ndarray:
    """True for lines that have nothing but a line end, bool [n]."""
    values = np.frombuffer(chunk, dtype=np.uint8)
    first = values[line_starts]
    second = values[np.minimum(line_starts + 1, len(values) - 1)]
    return np.asarray((first == _NEWLINE) | ((first == _RETURN) & (second == _NEWLINE)))


def _count_lines(handle: RandomAccessFile, end: int) -> int:
    """Number of the line that starts at the offset `end`."""
    lines, position = 1, 0
    while position < end:
        block = handle.read(min(_SCAN_BYTES, end - position), position)
        lines, position = lines + block.count(b"\n"), position + len(block)
    return lines
