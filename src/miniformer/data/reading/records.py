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
from miniformer.data.reading import files, schema
from miniformer.data.reading.files import DataFiles, ProgressCallback
from miniformer.data.reading.index import IndexedFile
from miniformer.data.reading.parsing import (
    DataError,
    Record,
    RecordError,
    check_record,
    parse_line,
    parse_piece,
)
from miniformer.data.reading.schema import Schema, compile_schema

if TYPE_CHECKING:
    from miniformer.data.selection import RecordSubset

__all__ = [
    "JSONLinesDataset",
    "Record",
    "RecordError",
    "Records",
    "InMemoryRecords",
    "TEXT_SCHEMA",
    "as_records",
]

TEXT_SCHEMA: Schema = {"text": schema.check_text}
_MAX_OPEN_FILES = 64  # files open at once; a system may allow a process 256
_READ_BATCH_SIZE = 1024


class JSONLinesDataset:
    """The records of files, by index; blank lines do not count. Fits a torch `DataLoader`.

    Args:
        path: a `.jsonl` or `.txt` file, maybe packed as `.gz` or `.zst`; a pattern such as
            `data/*.jsonl`; or a list of these, whose records follow one another.
        schema: the fields each record must have, and their checks (see
            `miniformer.data.reading.schema`).
        cache_dir: where to keep what packed files hold, and indexes. None: a folder of this user's
            own for temporary files, and indexes of large files only.
        progress: told the name of a file, the bytes done and all its bytes, while it is unpacked
            or indexed.

    Raises:
        UserError: a file is missing, unreadable, empty, or of another kind.
    """

    def __init__(
        self,
        path: DataFiles,
        schema: Schema = TEXT_SCHEMA,
        *,
        cache_dir: str | Path | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.files = files.expand_paths(path)
        self.schema, self._checks = schema, compile_schema(schema)
        self.is_plain_text = files.are_plain_text(self.files, list(schema))
        cache = None if cache_dir is None else Path(cache_dir)
        self._indexed_files: list[IndexedFile] = []
        self._open_files: list[IndexedFile] = []
        for file in self.files:
            part = IndexedFile(
                file, is_plain_text=self.is_plain_text, cache_dir=cache, progress=progress
            )
            self._indexed_files.append(part)
            self._limit_open_files(part)
        self._first_rows = [
            0,
            *accumulate(map(len, self._indexed_files)),
        ]  # record at which each file begins

    @property
    def name(self) -> str:
        """What to call the data in messages."""
        more = len(self.files) - 1
        return f"{self.files[0]}" + (f" and {more} more file{'s' * (more > 1)}" if more else "")

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each record as it stands in its file, line end and all, int64 [n]."""
        return np.concatenate([part.sizes for part in self._indexed_files])

    @property
    def n_bytes(self) -> int:
        """Bytes of all records."""
        return sum(part.index.n_bytes for part in self._indexed_files)

    def with_schema(self, schema: Schema) -> JSONLinesDataset:
        """The same files, held to another schema; they are not indexed again."""
        other = copy.copy(self)
        other.schema, other._checks = schema, compile_schema(schema)
        return other

    def __len__(self) -> int:
        return self._first_rows[-1]

    def __getitem__(self, index: int) -> Record:
        """The record at `index`.

        Raises:
            IndexError: there is no such record.
            RecordError: its line is not JSON or does not keep to the schema.
        """
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Record]:
        """All records in order, each file read front to back."""
        for part in self._indexed_files:
            for first in range(0, len(part), _READ_BATCH_SIZE):
                yield from self._parse_records(
                    part, range(first, min(first + _READ_BATCH_SIZE, len(part)))
                )

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """The records at some indices, in that order; neighbours in a file are read together.

        Raises:
            IndexError: there is no such record.
            RecordError: a line is not JSON or does not keep to the schema.
        """
        rows = [_normalize_index(index, len(self)) for index in indices]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        found: dict[int, Record] = {}
        for at, group in groupby(
            order, key=lambda place: bisect_right(self._first_rows, rows[place])
        ):
            places, first = list(group), self._first_rows[at - 1]
            local = [rows[place] - first for place in places]
            found.update(
                zip(places, self._parse_records(self._indexed_files[at - 1], local), strict=True)
            )
        return [found[place] for place in range(len(rows))]

    def location(self, index: int) -> str:
        """The file and line of a record, as messages name it."""
        row = _normalize_index(index, len(self))
        at = bisect_right(self._first_rows, row) - 1
        part = self._indexed_files[at]
        return f"{part.name}:{part.line_number(row - self._first_rows[at])}"

    def _parse_records(self, file: IndexedFile, rows: Sequence[int]) -> Iterator[Record]:
        self._limit_open_files(file)
        for row, raw in zip(rows, file.read(rows), strict=True):
            try:
                if self.is_plain_text:
                    yield parse_piece(raw, self._checks, continues=row > 0)
                else:
                    yield parse_line(raw, self._checks)
            except DataError as flaw:
                raise RecordError(
                    file.name, file.line_number(row) + flaw.line, flaw.problem
                ) from None

    def _limit_open_files(self, file: IndexedFile) -> None:
        """Keeps the number of open files low, however many there are."""
        if file not in self._open_files:
            if len(self._open_files) == _MAX_OPEN_FILES:
                for other in self._open_files:
                    other.close()
                self._open_files = []
            self._open_files.append(file)


class RecordSequence(Protocol):
    """Records that somebody else holds: a list of dicts, a Hugging Face `Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class InMemoryRecords:
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
        self.source, self.schema, self._checks = source, schema, compile_schema(schema)
        self.files: list[Path] = []
        self._sizes: np.ndarray | None = None
        if len(source) == 0:
            raise UserError(f"{self.name}: there are none; at least one is needed")

    @property
    def sizes(self) -> np.ndarray:
        """About how many bytes each record has: the length of its strings, int64 [n]."""
        if self._sizes is None:
            found = (sum(_text_length(record[name]) for name in self._checks) for record in self)
            self._sizes = np.fromiter(found, dtype=np.int64, count=len(self))
        return self._sizes

    @property
    def n_bytes(self) -> int:
        """About how many bytes all records have."""
        return int(self.sizes.sum())

    def with_schema(self, schema: Schema) -> InMemoryRecords:
        """The same records, held to another schema."""
        return InMemoryRecords(self.source, schema)

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
        for first in range(0, len(self), _READ_BATCH_SIZE):
            yield from self._check_records(range(first, min(first + _READ_BATCH_SIZE, len(self))))

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """The records at some indices, in that order.

        Raises:
            IndexError: there is no such record.
            UserError: one does not keep to the schema.
        """
        return list(self._check_records([_normalize_index(index, len(self)) for index in indices]))

    def location(self, index: int) -> str:
        """The number of a record, as messages name it."""
        return f"record {_normalize_index(index, len(self))}"

    def _check_records(self, rows: Sequence[int]) -> Iterator[Record]:
        # Hugging Face reads a batch far faster than one record after the other.
        batch = getattr(self.source, "__getitems__", None)
        found = batch(list(rows)) if batch else map(self.source.__getitem__, rows)
        for row, record in zip(rows, found, strict=True):
            try:
                if not isinstance(record, dict):
                    raise DataError(f"expected a dict, found a {type(record).__name__}")
                yield check_record(record, self._checks)
            except DataError as flaw:
                raise UserError(f"record {row}: {flaw.problem}") from None


Records = Union[JSONLinesDataset, InMemoryRecords, "RecordSubset"]


def as_records(
    source: DataFiles | Records | RecordSequence, schema: Schema | None = None, **options: Any
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
    if isinstance(source, (JSONLinesDataset, InMemoryRecords)):
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
    return InMemoryRecords(source, schema)  # type: ignore[arg-type]


def _are_paths(source: Any) -> bool:
    items = source if isinstance(source, (list, tuple)) else [source]
    return all(isinstance(item, (str, os.PathLike)) for item in items)


def _normalize_index(index: int, size: int) -> int:
    row = integer(index)
    if not -size <= row < size:
        raise IndexError(f"record {row} of {size}")
    return row % size


def _text_length(value: Any) -> int:
    """Characters of a string, or of the strings of a list."""
    if isinstance(value, list):
        return sum(len(item) for item in value if isinstance(item, str))
    return len(value) if isinstance(value, str) else 0
