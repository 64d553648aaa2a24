"""Format of .csv and .tsv files: dialect, header, columns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading.files import (
    UTF16_FIX,
    UTF16_MARKS,
    ProgressCallback,
    RandomAccessFile,
    text_start,
)
from miniformer.data.reading.formats.delimited import Dialect, index_rows
from miniformer.data.reading.mapping import (
    FieldMapping,
    available_columns,
    expand_columns,
    lacking_fields,
    suggest_columns,
)
from miniformer.data.reading.parsing import (
    DataError,
    Record,
    RecordError,
    check_nul,
    decode_as,
)
from miniformer.data.reading.record_index import RecordIndex
from miniformer.utils.columns import parse_delimiter, split_names

_CANDIDATES = (",", ";", "\t", "|")
_SAMPLE_BYTES, _SAMPLE_ROWS = 1 << 20, 64


class TextTable:
    """Delimited text with the same number of cells in each row.

    The first row has the names of the columns, unless `columns` of the mapping gives them.

    Args:
        handle: the open file.
        file_type: .csv, or .tsv, whose delimiter is a tab.
        mapping: the columns of the fields, and dialect settings.
        fields: fields that the schema requires.

    Raises:
        RecordError: the header is missing or invalid, or lacks a column.
        UserError: the file has no row.
    """

    is_table, is_mapped = True, False

    def __init__(
        self, handle: RandomAccessFile, file_type: str, mapping: FieldMapping, fields: Iterable[str]
    ) -> None:
        self.encoding = mapping.encoding
        self.is_quoting_given = mapping.quoting is not None
        self.has_header, self.optional = not mapping.columns, mapping.optional
        sources = mapping.sources(fields)
        quoted = mapping.quoting != "none"
        given = parse_delimiter(mapping.delimiter or "") or ("\t" if file_type == ".tsv" else None)
        sample = _Sample(handle, self.encoding)
        if given is not None:
            self.dialect = Dialect(given, quoted)
        else:
            expected = [name for names in sources.values() for name in names]
            self.dialect = _detect_dialect(sample, quoted, expected)
        self.columns = self._read_columns(handle.name, sample, mapping, sources)
        self.cache_key = ("table", self.dialect.delimiter, quoted, self.has_header)

    def build_index(
        self, handle: RandomAccessFile, progress: ProgressCallback | None
    ) -> RecordIndex:
        index = index_rows(handle, text_start(handle), self.dialect, progress)
        if not self.has_header or not len(index):
            return index
        next_rows, blank_starts = index.blank_lines
        after = next_rows >= 1
        blank_lines = np.array([next_rows[after] - 1, blank_starts[after]], dtype=np.int64)
        return RecordIndex(index.starts[1:], blank_lines)

    def parse(self, raw: bytes) -> Record:
        text = check_nul(decode_as(raw, self.encoding))
        cells = self.dialect.split(text.removesuffix("\n").removesuffix("\r"))
        if len(cells) != len(self.columns):
            raise DataError(self._width_problem(cells))
        if self.dialect.delimiter == "\t" and not self.is_quoting_given and '"' in text:
            self._check_quotes_of_tabs(cells)
        return dict(zip(self.columns, cells, strict=True))

    def _width_problem(self, cells: Sequence[str]) -> str:
        delimiter = self.dialect.delimiter
        number = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
        what = "the header has" if self.has_header else "columns names"
        if len(cells) > len(self.columns):
            fix = f"put cells that contain {delimiter!r} in double quotes"
        else:
            fix = f"add the missing cells; {delimiter!r} separates them"
        start = delimiter.join(cells)[:60]
        return f"the row has {number}, {what} {len(self.columns)}; {fix} (the row: {start!r})"

    def _check_quotes_of_tabs(self, cells: Sequence[str]) -> None:
        """Refuses a quoted cell with a tab and a line end, which are probably two rows."""
        for number, cell in enumerate(cells, 1):
            if "\t" in cell and "\n" in cell:
                raise DataError(
                    f"the quotes of cell {number} contain tabs and line ends, so that several rows "
                    "are one; set --quoting none if quotes are ordinary characters, or "
                    "--quoting double if this is one cell"
                )

    def _read_columns(
        self,
        name: Path,
        sample: _Sample,
        mapping: FieldMapping,
        sources: Mapping[str, Sequence[str]],
    ) -> list[str]:
        """Names of the columns, checked against the fields."""
        line, raw = sample.first_row(self.dialect)
        if raw is None:
            raise UserError(f"{name}: the file is empty; it needs at least one record")
        try:
            text = decode_as(raw, self.encoding).removesuffix("\n").removesuffix("\r")
            if "\r" in text and '"' not in text:
                raise DataError(
                    "lines end in carriage returns alone, as in files of old Macs; convert them: "
                    "tr '\\r' '\\n' < FILE > NEW_FILE"
                )
            first = self.dialect.split(text)
            return self._given_columns(first, mapping) if mapping.columns else self._header(
                first, sources
            )  # fmt: skip
        except DataError as error:
            raise RecordError(name, line + error.line, error.problem) from None

    def _given_columns(self, first: Sequence[str], mapping: FieldMapping) -> list[str]:
        names = split_names(mapping.columns)
        if [cell.strip() for cell in first] == names:
            raise DataError("the first row has the names of columns; leave columns out")
        if len(first) != len(names):
            raise DataError(
                f"the row has {len(first)} cells, columns has {len(names)} names "
                f"({', '.join(names)}); name each column of this file with --columns (the row: "
                f"{list(first)})"
            )
        return names

    def _header(self, first: Sequence[str], sources: Mapping[str, Sequence[str]]) -> list[str]:
        names = [cell.strip() or f"column {i}" for i, cell in enumerate(first, 1)]
        if self.optional:
            sources = {
                field: available_columns(field, columns, names)
                for field, columns in sources.items()
            }
        if problem := _header_problem(names, sources, self.dialect.delimiter):
            raise DataError(problem)
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"the header has {name!r} twice; rename one of the columns")
        return names


def _header_problem(
    names: Sequence[str], sources: Mapping[str, Sequence[str]], delimiter: str
) -> str | None:
    """Problem of a first row without the columns of fields, with both fixes; None: it has all."""
    missing, absent = lacking_fields(sources, names)
    if not missing:
        return None
    columns = f"column{'s' * (len(absent) > 1)} {' and '.join(map(repr, absent))}"
    shown = ", ".join(repr(name[:40]) for name in names[:12]) + ", ..." * (len(names) > 12)
    flags = suggest_columns(missing, sources, names)
    named = f"name the columns: {flags}" if flags else "name its columns by their flags"
    example = _example_columns(list(sources), len(names))
    task = " For another task than language_modeling, set --task." if [*sources] == ["text"] else ""
    return (
        f"the first row has no {columns}; it has {shown} (separated by {delimiter!r}). If it is a "
        f"header, {named}.{task} If the file has no header, name all columns in their order, such "
        f"as --columns {example}"
    )


def _example_columns(fields: Sequence[str], number: int) -> str:
    names = [*fields[:number], *(f"column{i}" for i in range(len(fields) + 1, number + 1))]
    return ",".join(names[:6]) + ",..." * (len(names) > 6)


class _Sample:
    """Start of a file, for the detection of its dialect."""

    def __init__(self, handle: RandomAccessFile, encoding: str | None) -> None:
        start = text_start(handle)
        raw = handle.read(min(_SAMPLE_BYTES, handle.stat.size - start), start)
        if raw.startswith(UTF16_MARKS) or b"\0" in raw[:2]:  # the latter has no mark
            raise RecordError(handle.name, 1, UTF16_FIX)
        self.lines = io.BytesIO(raw).readlines()  # only line feeds end lines
        self.encoding = encoding
        if start + len(raw) < handle.stat.size and len(self.lines) > 1:
            del self.lines[-1]

    def rows(self, dialect: Dialect) -> list[tuple[int, bytes]]:
        """The first rows, each with the number of its first line."""
        result, first, in_quotes = list[tuple[int, bytes]](), 1, False
        parts: list[bytes] = []
        for number, line in enumerate(self.lines, 1):
            if not parts:
                if not line.strip(b"\r\n"):
                    continue
                first = number
            parts.append(line)
            in_quotes = dialect.is_quoted and dialect.ends_in_quotes(line, in_quotes)
            if not in_quotes:
                result.append((first, b"".join(parts)))
                parts = []
                if len(result) == _SAMPLE_ROWS:
                    break
        return result or ([(first, b"".join(parts))] if parts else [])

    def first_row(self, dialect: Dialect) -> tuple[int, bytes | None]:
        """The first row and its line."""
        rows = self.rows(dialect)
        return rows[0] if rows else (1, None)

    def widths(self, dialect: Dialect) -> tuple[list[str], list[int]]:
        """The first row's cells, and the number of cells of each row; 0: not valid."""
        first, widths = list[str](), list[int]()
        for _, raw in self.rows(dialect):
            text = raw.decode(self.encoding or "utf-8", errors="replace").rstrip("\r\n")
            try:
                cells = dialect.split(text)
            except DataError:
                cells = []
            first = first or cells
            widths.append(len(cells))
        return first, widths


def _detect_dialect(sample: _Sample, quoted: bool, expected: Sequence[str]) -> Dialect:
    """The delimiter that fits best.

    The first of these decides: the header has all expected names; most rows have as many cells as
    the first, which has several; the first row has the most cells; the order of `_CANDIDATES`.
    """
    ranked = []
    for order, delimiter in enumerate(_CANDIDATES):
        dialect = Dialect(delimiter, quoted)
        first, widths = sample.widths(dialect)
        names = [cell.strip() for cell in first]
        width = len(first) if len(first) > 1 else 0
        share = widths.count(width) / max(1, len(widths))
        has_names = width > 0 and {*expand_columns(expected, names)} <= {*names}
        ranked.append((has_names, share if width else 0.0, width, -order, dialect))
    return max(ranked, key=lambda item: item[:4])[-1]
