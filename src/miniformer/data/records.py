"""Reading data files, one checked record at a time, in any order.

A `.jsonl` file holds one JSON object a line. A `.txt` file is running text: its records are pieces,
{"text": piece}, and all but the first of a file hold "continues": True as well. Records are found
once, by byte offset, and read when asked for, so that no file is ever held in memory.
"""

from __future__ import annotations

import copy
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from operator import index as integer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union

import numpy as np

from miniformer.config import UserError
from miniformer.data import fields, files
from miniformer.data.fields import Schema, checks_of
from miniformer.data.files import Progress, Source
from miniformer.data.index import IndexedFile
from miniformer.data.lines import (
    Flaw,
    Record,
    RecordError,
    check_record,
    parse_line,
    parse_piece,
)

if TYPE_CHECKING:
    from miniformer.data.selection import SomeRecords

__all__ = [
    "JSONLinesDataset",
    "Record",
    "RecordError",
    "Records",
    "SequenceRecords",
    "TEXT_SCHEMA",
    "records_of",
]

TEXT_SCHEMA: Schema = {"text": fields.text}
_MOST_OPEN = 64  # files open at once; a system may allow a process 256
_ROWS_AT_ONCE = 1024


class JSONLinesDataset:
    """The records of files, by index; blank lines do not count. Fits a torch `DataLoader`.

    Args:
        path: a `.jsonl` or `.txt` file, maybe packed as `.gz` or `.zst`; a pattern such as
            `data/*.jsonl`; or a list of these, whose records follow one another.
        schema: the fields each record must have, and their checks (see `miniformer.data.fields`).
        cache_dir: where to keep what packed files hold, and indexes. None: a folder of this user's
            own for temporary files, and indexes of large files only.
        progress: told the name of a file, the bytes done and all its bytes, while it is unpacked
            or indexed.

    Raises:
        UserError: a file is missing, unreadable, empty, or of another kind.
    """

    def __init__(
        self,
        path: Source,
        schema: Schema = TEXT_SCHEMA,
        *,
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.files = files.expand(path)
        self.schema, self._checks = schema, checks_of(schema)
        self.is_plain_text = files.are_plain_text(self.files, list(schema))
        cache = None if cache_dir is None else Path(cache_dir)
        self._parts: list[IndexedFile] = []
        self._in_use: list[IndexedFile] = []
        for file in self.files:
            part = IndexedFile(file, plain=self.is_plain_text, cache_dir=cache, progress=progress)
            self._parts.append(part)
            self._use(part)
        self._firsts = [0, *accumulate(map(len, self._parts))]  # record at which each file begins

    @property
    def name(self) -> str:
        """What to call the data in messages."""
        more = len(self.files) - 1
        return f"{self.files[0]}" + (f" and {more} more file{'s' * (more > 1)}" if more else "")

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each record as it stands in its file, line end and all, int64 [n]."""
        return np.concatenate([part.sizes for part in self._parts])

    @property
    def n_bytes(self) -> int:
        """Bytes of all records."""
        return sum(part.index.n_bytes for part in self._parts)

    def with_schema(self, schema: Schema) -> JSONLinesDataset:
        """The same files, held to another schema; they are not indexed again."""
        other = copy.copy(self)
        other.schema, other._checks = schema, checks_of(schema)
        return other

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> Record:
        """The record at `index`.

        Raises:
            IndexError: there is no such record.
            RecordError: its line is not JSON or does not keep to the schema.
        """
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Record]:
        """All records in order, each file read front to back."""
        for part in self._parts:
            for first in range(0, len(part), _ROWS_AT_ONCE):
                yield from self._records(part, range(first, min(first + _ROWS_AT_ONCE, len(part))))

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """The records at some indices, in that order; neighbours in a file are read together.

        Raises:
            IndexError: there is no such record.
            RecordError: a line is not JSON or does not keep to the schema.
        """
        rows = [_within(index, len(self)) for index in indices]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        found: dict[int, Record] = {}
        for at, group in groupby(order, key=lambda place: bisect_right(self._firsts, rows[place])):
            places, first = list(group), self._firsts[at - 1]
            local = [rows[place] - first for place in places]
            found.update(zip(places, self._records(self._parts[at - 1], local), strict=True))
        return [found[place] for place in range(len(rows))]

    def where(self, index: int) -> str:
        """The file and line of a record, as messages name it."""
        row = _within(index, len(self))
        at = bisect_right(self._firsts, row) - 1
        part = self._parts[at]
        return f"{part.name}:{part.line(row - self._firsts[at])}"

    def _records(self, part: IndexedFile, rows: Sequence[int]) -> Iterator[Record]:
        self._use(part)
        for row, raw in zip(rows, part.read(rows), strict=True):
            try:
                if self.is_plain_text:
                    yield parse_piece(raw, self._checks, continues=row > 0)
                else:
                    yield parse_line(raw, self._checks)
            except Flaw as flaw:
                raise RecordError(part.name, part.line(row) + flaw.line, flaw.problem) from None

    def _use(self, part: IndexedFile) -> None:
        """Keeps the number of open files low, however many there are."""
        if part not in self._in_use:
            if len(self._in_use) == _MOST_OPEN:
                for other in self._in_use:
                    other.close()
                self._in_use = []
            self._in_use.append(part)


class RecordSequence(Protocol):
    """Records that somebody else holds: a list of dicts, a Hugging Face `Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SequenceRecords:
    """Records that are no file, with all that a `JSONLinesDataset` offers.

    Args:
        source: the records, by index.
        schema: the fields each record must have, and their checks.

    Raises:
        UserError: there are none.
    """

    name = "records"
    is_plain_text = False

    def __init__(self, source: RecordSequence, schema: Schema = TEXT_SCHEMA) -> None:
        self.source, self.schema, self._checks = source, schema, checks_of(schema)
        self.files: list[Path] = []
        self._sizes: np.ndarray | None = None
        if len(source) == 0:
            raise UserError(f"{self.name}: there are none; at least one is needed")

    @property
    def sizes(self) -> np.ndarray:
        """About how many bytes each record has: the length of its strings, int64 [n]."""
        if self._sizes is None:
            found = (sum(_length(record[name]) for name in self._checks) for record in self)
            self._sizes = np.fromiter(found, dtype=np.int64, count=len(self))
        return self._sizes

    @property
    def n_bytes(self) -> int:
        """About how many bytes all records have."""
        return int(self.sizes.sum())

    def with_schema(self, schema: Schema) -> SequenceRecords:
        """The same records, held to another schema."""
        return SequenceRecords(self.source, schema)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`.

        Raises:
            IndexError: there is no such record.
            UserError: it does not keep to the schema.
        """
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Record]:
        """All records in order."""
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._records(range(first, min(first + _ROWS_AT_ONCE, len(self))))

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """The records at some indices, in that order.

        Raises:
            IndexError: there is no such record.
            UserError: one does not keep to the schema.
        """
        return list(self._records([_within(index, len(self)) for index in indices]))

    def where(self, index: int) -> str:
        """The number of a record, as messages name it."""
        return f"record {_within(index, len(self))}"

    def _records(self, rows: Sequence[int]) -> Iterator[Record]:
        # Hugging Face reads a batch far faster than one record after the other.
        batch = getattr(self.source, "__getitems__", None)
        found = batch(list(rows)) if batch else map(self.source.__getitem__, rows)
        for row, record in zip(rows, found, strict=True):
            try:
                if not isinstance(record, dict):
                    raise Flaw(f"expected a dict, found a {type(record).__name__}")
                yield check_record(record, self._checks)
            except Flaw as flaw:
                raise UserError(f"record {row}: {flaw.problem}") from None


Records = Union[JSONLinesDataset, SequenceRecords, "SomeRecords"]


def records_of(
    source: Source | Records | RecordSequence, schema: Schema | None = None, **options: Any
) -> Records:
    """Whatever a user calls data, as records.

    Args:
        source: paths as `JSONLinesDataset` takes them, or records in memory: a list of dicts, a
            Hugging Face `Dataset`, or anything with a length that gives dicts by index.
        schema: the fields each record must have, and their checks; None: a text, or those of
            records that have a schema already.
        options: those of `JSONLinesDataset`, for files.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    if isinstance(source, (JSONLinesDataset, SequenceRecords)):
        return source if schema in (None, source.schema) else source.with_schema(schema)
    schema = TEXT_SCHEMA if schema is None else schema
    if _are_paths(source):
        return JSONLinesDataset(source, schema, **options)  # type: ignore[arg-type]
    if isinstance(source, Mapping):
        raise UserError(
            f"records: a {type(source).__name__} is no sequence of records; "
            f"choose one of its parts: {', '.join(map(str, source))}"
        )
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise UserError(
            f"records: a {type(source).__name__} cannot be read in any order; "
            "name files, or give a list of dicts"
        )
    return SequenceRecords(source, schema)  # type: ignore[arg-type]


def _are_paths(source: Any) -> bool:
    items = source if isinstance(source, (list, tuple)) else [source]
    return all(isinstance(item, (str, os.PathLike)) for item in items)


def _within(index: int, size: int) -> int:
    row = integer(index)
    if not -size <= row < size:
        raise IndexError(f"record {row} of {size}")
    return row % size


def _length(value: Any) -> int:
    """Characters of a string, or of the strings of a list."""
    if isinstance(value, list):
        return sum(len(item) for item in value if isinstance(item, str))
    return len(value) if isinstance(value, str) else 0
