"""Records of tables in memory: frames of pandas and polars, pyarrow tables, `datasets`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from miniformer.config import UserError
from miniformer.data.reading.formats.arrow import plain_record
from miniformer.data.reading.mapping import FieldMapping, check_columns
from miniformer.data.reading.parsing import Record


def is_frame(source: Any) -> bool:
    """True for a table in memory; imports nothing."""
    return _kind(source) in _READERS


def open_frame(source: Any, mapping: FieldMapping, fields: Iterable[str]) -> FrameRows:
    """The rows of a table in memory.

    Raises:
        UserError: the table has a column twice, or lacks the column of a field.
    """
    rows = FrameRows(source)
    if problem := check_columns(rows.columns, mapping, fields):
        raise UserError(f"records: {problem}")
    return rows


class FrameRows:
    """Sequence of the rows of a table, as dicts of plain types.

    Args:
        source: a table; rows are read when needed.
    """

    def __init__(self, source: Any) -> None:
        kind = _kind(source)
        if kind == "datasets.Dataset":
            source = source.with_format(None)  # others return tensors
        if kind == "polars.LazyFrame":
            source = source.collect()
        self._source, self._read = source, _READERS[kind]
        columns = source.column_names if hasattr(source, "column_names") else source.columns
        self.columns = [str(name) for name in columns]
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise UserError(f"records: the table has the column {name!r} twice; rename one")

    def __len__(self) -> int:
        return self._source.num_rows if hasattr(self._source, "num_rows") else len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Rows at several indices, which are read together."""
        return [plain_record(row) for row in self._read(self._source, list(indices))]


def _pandas_rows(frame: Any, rows: list[int]) -> list[dict[Any, Any]]:
    result: list[dict[Any, Any]] = frame.iloc[rows].to_dict("records")
    return result


def _polars_rows(frame: Any, rows: list[int]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = frame[rows].to_dicts()
    return result


def _arrow_rows(table: Any, rows: list[int]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = table.take(rows).to_pylist()
    return result


def _dataset_rows(dataset: Any, rows: list[int]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = dataset.__getitems__(rows)
    return result


_READERS = {
    "pandas.DataFrame": _pandas_rows,
    "polars.DataFrame": _polars_rows,
    "polars.LazyFrame": _polars_rows,
    "pyarrow.Table": _arrow_rows,
    "datasets.Dataset": _dataset_rows,
}


def _kind(source: Any) -> str:
    return f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}"
