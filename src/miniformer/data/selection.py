"""Some of the records of files, such as those without faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from miniformer.data.fields import Schema
from miniformer.data.records import JSONLinesDataset, Record

_ROWS_AT_ONCE = 1024


class SomeRecords:
    """Some of the records of files, with all that a `JSONLinesDataset` offers.

    Args:
        records: all of them.
        rows: the indices of those that count, int64 [n], ascending.
    """

    def __init__(self, records: JSONLinesDataset, rows: np.ndarray) -> None:
        self.records, self.rows = records, rows
        self.name, self.files = records.name, records.files
        self.schema, self.is_plain_text = records.schema, records.is_plain_text

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each record as it stands in its file, int64 [n]."""
        return np.asarray(self.records.sizes[self.rows])

    @property
    def n_bytes(self) -> int:
        """Bytes of these records."""
        return int(self.sizes.sum())

    def with_schema(self, schema: Schema) -> SomeRecords:
        """The same records, held to another schema."""
        return SomeRecords(self.records.with_schema(schema), self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        """The record at `index` of these; see `JSONLinesDataset`."""
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Record]:
        """These records in order."""
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self.records.read(self.rows[first : first + _ROWS_AT_ONCE])

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """The records at some indices of these; see `JSONLinesDataset`."""
        return self.records.read([self.rows[index] for index in indices])

    def where(self, index: int) -> str:
        """The file and line of a record, as messages name it."""
        return self.records.where(int(self.rows[index]))
