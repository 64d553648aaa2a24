"""Subsets of the records of files, such as the valid ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from miniformer.data.reading.records import JSONLinesDataset, Record
from miniformer.data.reading.schema import Schema

_READ_BATCH_SIZE = 1024


class RecordSubset:
    """Subset of the records of files, with the interface of `JSONLinesDataset`.

    Args:
        records: all records.
        indices: ascending indices of the subset, int64 [n].
    """

    def __init__(self, records: JSONLinesDataset, indices: np.ndarray) -> None:
        self.records, self.indices = records, indices
        self.name, self.files = records.name, records.files
        self.schema, self.is_plain_text = records.schema, records.is_plain_text

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each record in its file, int64 [n]."""
        return np.asarray(self.records.sizes[self.indices])

    @property
    def n_bytes(self) -> int:
        """Bytes of these records."""
        return int(self.sizes.sum())

    def with_schema(self, schema: Schema) -> RecordSubset:
        """Same records with another schema."""
        return RecordSubset(self.records.with_schema(schema), self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        """Record at `index` of the subset; see `JSONLinesDataset`."""
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Record]:
        """Records of the subset in order."""
        for start in range(0, len(self), _READ_BATCH_SIZE):
            yield from self.records.read(self.indices[start : start + _READ_BATCH_SIZE])

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """Records at the given indices of the subset; see `JSONLinesDataset`."""
        return self.records.read([self.indices[index] for index in indices])

    def location(self, index: int) -> str:
        """File and line of a record, as file:line."""
        return self.records.location(int(self.indices[index]))
