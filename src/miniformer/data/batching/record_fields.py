"""Fields of records beyond the schema, in the batches of validation; see `Task.extra_fields`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from miniformer.config import UserError
from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import Batcher
from miniformer.data.reading.records import Records


class FieldBatcher:
    """A batcher whose batches have `records` and `fields`; all else is that of another one.

    `records` is the index of each row's record, int64 [B], or in a packed batch of each label's
    record, int64 [B, T]. `fields` is field -> index of a record -> its value.

    Args:
        batcher: the batcher.
        records: the data.
        fields: names of the fields.
    """

    def __init__(self, batcher: Batcher, records: Records, fields: Sequence[str]) -> None:
        self._batcher, self._records, self._fields = batcher, records, fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batcher, name)

    def collate(
        self, chunk: ColumnarStore, plan: Any, rng: np.random.Generator | None = None
    ) -> Batch:
        """Batch of a plan with the fields of its records.

        Raises:
            UserError: a record lacks a field, or it is not known which record an example is of.
        """
        if "record" not in chunk.columns:
            raise UserError(
                f"the fields {', '.join(self._fields)} cannot be found: the task gives several "
                "examples of a record; add the number of its record to each example, as 'record'"
            )
        find_examples = getattr(self._batcher, "label_examples", self._batcher.example_indices)
        indices = chunk.columns["record"][find_examples(chunk, plan)].astype(np.int64)
        distinct = np.unique(indices).tolist()
        fields: dict[str, dict[int, Any]] = {name: {} for name in self._fields}
        for index, record in zip(distinct, self._records.read(distinct), strict=True):
            for name in self._fields:
                if name not in record:
                    raise UserError(
                        f"{self._records.location(index)}: the record has no {name!r}, which the "
                        "metrics need; add that field"
                    )
                fields[name][index] = record[name]
        batch = self._batcher.collate(chunk, plan, rng)
        return {**batch, "records": torch.from_numpy(indices), "fields": fields}
