"""Random access to the checked records of data files.

A `.jsonl` file has one JSON object per line. A `.txt` file is plain text: its records are text
blocks, {"text": block}, and all but the first of a file also have "continues": True. See `formats`
for the others. Records are indexed once, by byte offset, and read on access, so that no file is
held in memory.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from operator import index as integer
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading import files, schema
from miniformer.data.reading.cells import CellMapper, infer_kinds
from miniformer.data.reading.files import DataFiles, ProgressCallback
from miniformer.data.reading.formats.frames import is_frame, open_frame
from miniformer.data.reading.formats.opening import DataFile, open_data_file
from miniformer.data.reading.index import IndexedFile
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.parsing import DataError, Record, RecordError, check_record
from miniformer.data.reading.schema import Schema, compile_schema

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
_MAX_OPEN_FILES = 64  # systems may limit a process to 256
_READ_BATCH_SIZE = 1024


class Records:
    """Checked records by index. Base class of records of files, in memory, and of subsets.

    Attributes:
        name: name of the data in messages.
        files: their files, if any.
        schema: required fields and their checks.
        is_plain_text: true for text blocks of `.txt` files.
        mapping: the columns of the fields. That of text tables has the kinds of their columns, so
            that later files can be read alike.
        mixture: `MixtureShares` of records that are drawn by the weights of their sources.
    """

    name: str
    files: list[Path]
    schema: Schema
    is_plain_text = False
    mapping = FieldMapping()
    mixture: Any = None

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each record in its file, line end included, int64 [n]."""
        raise NotImplementedError

    @property
    def n_bytes(self) -> int:
        """Bytes of all records."""
        return int(self.sizes.sum())

    def with_schema(self, schema: Schema) -> Self:
        """Same records with another schema."""
        result = copy.copy(self)
        result.set_schema(schema)
        return result

    def set_schema(self, schema: Schema) -> None:
        """Replaces the schema."""
        self.schema, self._checks = schema, compile_schema(schema)
        self._mapper = self.mapping.row_mapper(schema)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        """Record at `index`; see `read`."""
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Record]:
        """All records in order."""
        for start in range(0, len(self), _READ_BATCH_SIZE):
            yield from self._read_rows(range(start, min(start + _READ_BATCH_SIZE, len(self))))

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """Records at the given indices, in that order; neighbors in a file are read together.

        Raises:
            IndexError: an index is out of range.
            RecordError: a line of a file is not JSON or violates the schema.
            UserError: a record in memory violates the schema.
        """
        return list(self._read_rows([self._normalize_index(index) for index in indices]))

    def location(self, index: int) -> str:
        """Name of a record in messages: file:line, or its index in memory."""
        return f"record {self._normalize_index(index)}"

    def _read_rows(self, rows: Sequence[int]) -> Iterator[Record]:
        raise NotImplementedError

    def _normalize_index(self, index: int) -> int:
        row, size = integer(index), len(self)
        if not -size <= row < size:
            raise IndexError(f"record {row} of {size}")
        return row % size


class JSONLinesDataset(Records):
    """Map-style dataset of the records of files, without blank lines. Fits a torch `DataLoader`.

    Args:
        path: a file in one of the formats of docs/data.md, such as `.jsonl` or `.csv`; a pattern
            such as `data/*.jsonl`; or a list of these, whose records are concatenated.
        schema: required fields and their checks (see `miniformer.data.reading.schema`).
        mapping: columns of the fields; None: they have the names of the fields.
        cache_dir: folder for decompressed files and indexes. None: a temporary folder of this user,
            with indexes of large files only.
        progress: called with (file name, bytes done, total bytes) during decompression and
            indexing.

    Raises:
        UserError: a file is missing, unreadable, empty, or of an unknown type.
    """

    def __init__(
        self,
        path: DataFiles,
        schema: Schema = TEXT_SCHEMA,
        *,
        mapping: FieldMapping | None = None,
        cache_dir: str | Path | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.mapping = mapping or FieldMapping()
        self._cell_mapper: CellMapper | None = None
        self.files = files.expand_paths(path)
        more = len(self.files) - 1
        others = f" and {more} more file{'s' * (more > 1)}" if more else ""
        self.name = f"{self.files[0]}{others}"
        self.set_schema(schema)
        self.is_plain_text = files.are_plain_text(self.files, list(schema))
        cache = None if cache_dir is None else Path(cache_dir)
        self._indexed_files: list[DataFile] = []
        self._open_files: list[DataFile] = []
        for path in self.files:
            file = open_data_file(
                path, self.mapping, schema, cache_dir=cache, progress=progress
            )  # fmt: skip
            self._indexed_files.append(file)
            self._limit_open_files(file)
        if any(file.is_table for file in self._indexed_files):
            self._resolve_tables()
        # Index of the first record of each file.
        self._first_rows = [0, *accumulate(map(len, self._indexed_files))]

    def set_schema(self, schema: Schema) -> None:
        super().set_schema(schema)
        if self._cell_mapper is not None:
            self._resolve_tables()

    @property
    def sizes(self) -> np.ndarray:
        return np.concatenate([file.sizes for file in self._indexed_files])

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self._indexed_files)

    def __len__(self) -> int:
        return self._first_rows[-1]

    def __iter__(self) -> Iterator[Record]:
        for file in self._indexed_files:
            for start in range(0, len(file), _READ_BATCH_SIZE):
                yield from self._parse_records(
                    file, range(start, min(start + _READ_BATCH_SIZE, len(file)))
                )

    def _read_rows(self, rows: Sequence[int]) -> Iterator[Record]:
        order = sorted(range(len(rows)), key=rows.__getitem__)
        result: dict[int, Record] = {}
        for end, group in groupby(order, key=lambda i: bisect_right(self._first_rows, rows[i])):
            positions, first_row = list(group), self._first_rows[end - 1]
            local_rows = [rows[i] - first_row for i in positions]
            records = self._parse_records(self._indexed_files[end - 1], local_rows)
            result.update(zip(positions, records, strict=True))
        return map(result.__getitem__, range(len(rows)))

    def location(self, index: int) -> str:
        row = self._normalize_index(index)
        file_index = bisect_right(self._first_rows, row) - 1
        file = self._indexed_files[file_index]
        return f"{file.name}:{file.line_number(row - self._first_rows[file_index])}"

    def _parse_records(self, file: DataFile, rows: Sequence[int]) -> Iterator[Record]:
        self._limit_open_files(file)
        mapper = self._cell_mapper if file.is_table else self._mapper
        for row, raw in zip(rows, file.read(rows), strict=True):
            try:
                yield file.parse(raw, row, self._checks, mapper)
            except DataError as error:
                raise RecordError(
                    file.name, file.line_number(row) + error.line, error.problem
                ) from None

    def _resolve_tables(self) -> None:
        """Finds the kinds of the columns of text tables, unless they are known."""
        sources = self.mapping.sources(self.schema)
        if self.mapping.kinds is None:
            tables = (file for file in self._indexed_files if isinstance(file, IndexedFile))
            rows = (row for file in tables if file.is_table for row in file.table_rows())
            kinds, separator = infer_kinds(rows, sources)
            self.mapping = dataclasses.replace(self.mapping, kinds=kinds, label_separator=separator)
        self._cell_mapper = CellMapper(sources, self.mapping)

    def _limit_open_files(self, file: DataFile) -> None:
        """Closes the open files when they reach the limit, and counts this one."""
        if file not in self._open_files:
            if len(self._open_files) == _MAX_OPEN_FILES:
                for open_file in self._open_files:
                    open_file.close()
                self._open_files = []
            self._open_files.append(file)


class RecordSequence(Protocol):
    """Records in memory or elsewhere: a list of dicts, a Hugging Face `Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class RecordSource(Protocol):
    """Source that opens its records itself."""

    def open_records(self, schema: Schema, mapping: FieldMapping | None, **options: Any) -> Records:
        """The records; see `as_records`."""


class InMemoryRecords(Records):
    """Records that are not in files.

    Args:
        source: records by index.
        schema: required fields and their checks.
        mapping: columns of the fields; None: they have the names of the fields.

    Raises:
        UserError: `source` is empty.
    """

    name = "records"
    _sizes: np.ndarray | None

    def __init__(
        self,
        source: RecordSequence,
        schema: Schema = TEXT_SCHEMA,
        mapping: FieldMapping | None = None,
    ) -> None:
        self.source = source
        self.mapping = mapping or FieldMapping()
        self.files = []
        self.set_schema(schema)
        if len(source) == 0:
            raise UserError(f"{self.name}: there are none; at least one is needed")

    @property
    def sizes(self) -> np.ndarray:
        """Approximate bytes of each record: the length of its strings, int64 [n]."""
        if self._sizes is None:
            sizes = (sum(_text_length(record[name]) for name in self._checks) for record in self)
            self._sizes = np.fromiter(sizes, dtype=np.int64, count=len(self))
        return self._sizes

    def set_schema(self, schema: Schema) -> None:
        super().set_schema(schema)
        self._sizes = None

    def __len__(self) -> int:
        return len(self.source)

    def _read_rows(self, rows: Sequence[int]) -> Iterator[Record]:
        # Hugging Face reads a batch far faster than single records.
        get_batch = getattr(self.source, "__getitems__", None)
        records = get_batch(list(rows)) if get_batch else map(self.source.__getitem__, rows)
        for row, record in zip(rows, records, strict=True):
            try:
                if not isinstance(record, dict):
                    raise DataError(f"expected a dict, found a {type(record).__name__}")
                record = record if self._mapper is None else self._mapper(record)
                yield check_record(record, self._checks)
            except DataError as error:
                raise UserError(f"record {row}: {error.problem}") from None


def as_records(
    source: DataFiles | Records | RecordSequence | RecordSource,
    schema: Schema | None = None,
    *,
    mapping: FieldMapping | None = None,
    **options: Any,
) -> Records:
    """Records of files or of a sequence.

    Args:
        source: paths as in `JSONLinesDataset`, or records in memory: a list of dicts, a pandas or
            polars frame, a pyarrow table, a Hugging Face `Dataset`, or another sequence of dicts;
            or a `RecordSource`, such as a `Mixture`.
        schema: required fields and their checks; None: the records' own schema, or a text.
        mapping: columns of the fields; None: they have the names of the fields, or those of the
            `Records`.
        options: options of `JSONLinesDataset`, for files.

    Raises:
        UserError: the source has another type, or cannot be read.
    """
    if isinstance(source, Records):
        return source if schema in (None, source.schema) else source.with_schema(schema)
    schema = TEXT_SCHEMA if schema is None else schema
    items = source if isinstance(source, (list, tuple)) else [source]
    if all(isinstance(item, (str, os.PathLike)) for item in items):
        return JSONLinesDataset(source, schema, mapping=mapping, **options)  # type: ignore[arg-type]
    if isinstance(source, RecordSource):
        return source.open_records(schema, mapping, **options)
    return _records_in_memory(source, schema, mapping)


def _records_in_memory(
    source: Any, schema: Schema, mapping: FieldMapping | None
) -> InMemoryRecords:
    """Raises a UserError if the source has no random access to records."""
    if is_frame(source):
        source = open_frame(source, mapping or FieldMapping(), schema)
    if isinstance(source, Mapping):
        raise UserError(
            f"records: a {type(source).__name__} is not a sequence of records; "
            f"choose one of its parts: {', '.join(map(str, source))}"
        )
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise UserError(
            f"records: a {type(source).__name__} has no random access; "
            "name files, or pass a list of dicts"
        )
    return InMemoryRecords(source, schema, mapping)


def _text_length(value: Any) -> int:
    """Characters of a string, or of the strings, parts or messages of a text in a list."""
    if isinstance(value, list):
        texts = (
            item.get("text", item.get("content")) if isinstance(item, dict) else item
            for item in value
        )
        return sum(len(text) for text in texts if isinstance(text, str))
    return len(value) if isinstance(value, str) else 0
