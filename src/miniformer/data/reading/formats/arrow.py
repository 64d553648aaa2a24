"""Records of .parquet and .arrow files and of folders of Hugging Face `datasets`.

A Parquet file is read by row group, of which the last one stays in memory; Arrow files are memory-
mapped. Needs the package pyarrow.
"""

from __future__ import annotations

import datetime
import decimal
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading.files import FileStat, file_changed_error
from miniformer.data.reading.parsing import Mapper, Record, check_record
from miniformer.data.reading.schema import Checks

_MAX_ROWS_PER_READ = 1024


class ArrowFile:
    """Data file of typed columns with random access to its rows; can be pickled.

    Args:
        name: a .parquet or .arrow file, or a folder that `Dataset.save_to_disk` wrote.

    Raises:
        UserError: pyarrow is missing, or the file cannot be read or has no rows.
    """

    is_table = False

    def __init__(self, name: Path) -> None:
        self.name = name
        self.paths = _data_files(name)
        self._stats = [_stat(path) for path in self.paths]
        self._parts: list[Any] | None = None
        self._group: tuple[int, Any] | None = None  # the row group in memory
        parts = self._open()
        self._counts = [part.num_rows for part in parts]
        # Index of the first row of each part.
        self._first_rows = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        if len(self) == 0:
            raise UserError(f"{name}: the file is empty; it needs at least one record")
        self.n_bytes = sum(part.num_bytes for part in parts)
        self.columns: list[str] = parts[0].columns
        if len(set(self.columns)) < len(self.columns):
            double = next(name for name in self.columns if self.columns.count(name) > 1)
            raise UserError(f"{name}: has the column {double!r} twice; rename one of them")

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None, "_group": None}

    @property
    def sizes(self) -> np.ndarray:
        """Mean bytes of a row, for each one, int64 [n]."""
        return np.full(len(self), max(1, self.n_bytes // len(self)), dtype=np.int64)

    def line_number(self, row: int) -> int:
        """Number of a row, from 1."""
        return row + 1

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[Record]:
        """Yields rows by column, as plain types; `rows` are ascending.

        Raises:
            UserError: the file has changed.
        """
        rows = np.asarray(rows, dtype=np.int64)
        parts = np.searchsorted(self._first_rows, rows, side="right") - 1
        start = 0
        while start < len(rows):
            part = int(parts[start])
            stop = min(int(np.searchsorted(parts, part, side="right")), start + _MAX_ROWS_PER_READ)
            table = self._read_part(part)
            local = rows[start:stop] - self._first_rows[part]
            if stop - start == local[-1] - local[0] + 1:  # neighbors need no copy
                selected = table.slice(int(local[0]), stop - start)
            else:
                selected = table.take(local)
            yield from map(plain_record, selected.to_pylist())
            start = stop

    def parse(
        self,
        raw: Any,
        row: int,
        checks: Checks,
        mapper: Mapper | None,
    ) -> Record:
        """The record of a row; see `IndexedFile.parse`."""
        return check_record(raw if mapper is None else mapper(raw), checks)

    def close(self) -> None:
        """Closes the file until the next read."""
        self._parts = self._group = None

    def _read_part(self, part: int) -> Any:
        """Table of a row group or of a batch."""
        group = self._group  # another thread may replace it
        if group is None or group[0] != part:
            for path, stat in zip(self.paths, self._stats, strict=True):
                if _stat(path) != stat:
                    raise file_changed_error(self.name)
            self._group = group = (part, self._open()[part].read())
        return group[1]

    def _open(self) -> list[Any]:
        # Another thread may call `close`.
        self._parts = parts = self._parts or [
            part for path in self.paths for part in _open_parts(path, self.name)
        ]
        return parts


class _Part:
    """Rows that are read together: a row group of Parquet, or a batch of Arrow."""

    def __init__(
        self, columns: list[str], num_rows: int, num_bytes: int, read: Callable[[], Any]
    ) -> None:
        self.columns, self.num_rows, self.num_bytes, self.read = columns, num_rows, num_bytes, read


def _open_parts(path: Path, name: Path) -> Iterator[_Part]:
    """Parts of a file.

    Raises:
        UserError: the file cannot be read.
    """
    pa = import_pyarrow()
    try:
        if path.suffix.lower() == ".parquet":
            file = importlib.import_module("pyarrow.parquet").ParquetFile(path, memory_map=True)
            columns = file.schema_arrow.names
            for i in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(i)
                yield _Part(
                    columns, group.num_rows, group.total_byte_size,
                    partial(file.read_row_group, i, use_threads=False),
                )  # fmt: skip
            if not file.metadata.num_row_groups:
                yield _Part(columns, 0, 0, file.read)
            return
        source = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:  # a stream, as datasets writes
            table = pa.ipc.open_stream(source).read_all()
        yield _Part(table.column_names, table.num_rows, table.nbytes, lambda: table)
    except pa.ArrowInvalid as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{name}: not a valid {path.suffix} file ({problem})") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from None


def import_pyarrow() -> Any:
    """The package pyarrow.

    Raises:
        UserError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.ipc")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise UserError(
            '.parquet and .arrow files need the package pyarrow; pip install "miniformer[parquet]"'
        ) from None


def _data_files(name: Path) -> list[Path]:
    """The Arrow files of a folder of `datasets`, or the file itself."""
    if not name.is_dir():
        return [name]
    try:
        state = json.loads((name / "state.json").read_text(encoding="utf-8"))
        files = [name / item["filename"] for item in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}/state.json: not a data set of Hugging Face: {error!r}") from None
    if state.get("_indices_files"):
        raise UserError(
            f"{name}: its rows are selected by indices; save it with flatten_indices() first"
        )
    if not files:
        raise UserError(f"{name}: the data set is empty; it needs at least one record")
    return files


def _stat(path: Path) -> FileStat:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return FileStat(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def plain_record(row: Mapping[Any, Any]) -> Record:
    """A row with plain types: as if read from JSON. Missing numbers are None."""
    return {
        str(name): value if type(value) in (str, int) else plain_value(value)
        for name, value in row.items()
    }


def plain_value(value: Any) -> Any:
    """A value as JSON would hold it; dates are ISO 8601 strings."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, list | tuple):
        return [_plain_item(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain_item(item) for key, item in value.items()}
    if isinstance(value, datetime.date | datetime.time):  # also pandas' NaT, which is no date
        return value.isoformat() if value == value else None
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain_value(value.tolist())
    return value if type(value).__name__ not in ("NAType", "NaTType") else None


def _plain_item(value: Any) -> Any:
    """An item of a list; NaN stays, so that checks of vectors report it."""
    return value if isinstance(value, float) else plain_value(value)
