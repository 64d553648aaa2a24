"""Subsets of records, such as the valid ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema


class RecordSubset(Records):
    """Subset of records.

    Args:
        records: all records.
        indices: ascending indices of the subset, int64 [n].
    """

    def __init__(self, records: Records, indices: np.ndarray) -> None:
        self.records, self.indices = records, indices
        self.name, self.files, self.mapping = records.name, records.files, records.mapping
        self.schema, self.is_plain_text = records.schema, records.is_plain_text
        self.mixture = None if records.mixture is None else records.mixture.take(indices)

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray(self.records.sizes[self.indices])

    def set_schema(self, schema: Schema) -> None:
        self.schema, self.records = schema, self.records.with_schema(schema)

    def __len__(self) -> int:
        return len(self.indices)

    def location(self, index: int) -> str:
        return self.records.location(int(self.indices[index]))

    def _read_rows(self, rows: Sequence[int]) -> Iterator[Record]:
        return iter(self.records.read(self.indices[np.asarray(rows)]))
