"""Columnar store: many examples in a few arrays.

An example is a dict of arrays (token ids, feature vectors) and numbers (a label). Many small dicts
would take more memory than their contents, and would be slow to send between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Example = dict[str, Any]


class ColumnarStore:
    """Examples by column: concatenated arrays, or one number per example.

    Args:
        columns: name -> values: concatenated arrays [total, ...], or numbers [n].
        offsets: name of a column of arrays -> start of each example's array, and the end, int64
            [n + 1].
    """

    def __init__(self, columns: dict[str, np.ndarray], offsets: dict[str, np.ndarray]) -> None:
        self.columns, self.offsets = columns, offsets

    @classmethod
    def from_examples(cls, examples: Sequence[Example]) -> ColumnarStore:
        """Stores examples, which must all have the same names."""
        columns: dict[str, np.ndarray] = {}
        offsets: dict[str, np.ndarray] = {}
        for name, first in examples[0].items() if examples else ():
            values = [example[name] for example in examples]
            if isinstance(first, np.ndarray):
                columns[name] = np.concatenate(values)
                offsets[name] = np.cumsum([0, *map(len, values)])
            else:
                columns[name] = np.array(values)
        return cls(columns, offsets)

    @classmethod
    def concatenate(cls, stores: Sequence[ColumnarStore]) -> ColumnarStore:
        """Concatenates stores."""
        stores = [store for store in stores if len(store)]
        if not stores:
            return cls({}, {})
        if any("learn" in store.columns for store in stores):
            stores = [store._with_learn() for store in stores]
        columns = {
            name: np.concatenate([store.columns[name] for store in stores])
            for name in stores[0].columns
        }
        offsets = {
            name: np.cumsum(np.concatenate([[0], *(store.lengths(name) for store in stores)]))
            for name in stores[0].offsets
        }
        return cls(columns, offsets)

    def _with_learn(self) -> ColumnarStore:
        """The store with the column `learn`, true for each token if it has none."""
        if "learn" in self.columns:
            return self
        learn = np.ones(len(self.columns["ids"]), dtype=bool)
        # In the order of columns of an example with parts.
        columns = {"ids": self.columns["ids"], "learn": learn, **self.columns}
        return ColumnarStore(columns, {**self.offsets, "learn": self.offsets["ids"]})

    def __len__(self) -> int:
        for name, values in self.columns.items():
            return len(self.offsets[name]) - 1 if name in self.offsets else len(values)
        return 0

    def __getitem__(self, index: int) -> Example:
        return {
            name: values[slice(*self.offsets[name][index : index + 2])]
            if name in self.offsets
            else values[index]
            for name, values in self.columns.items()
        }

    def take(self, indices: np.ndarray) -> ColumnarStore:
        """Store of the examples at `indices`, int [n], with repetitions."""
        columns, offsets = {}, {}
        for name, values in self.columns.items():
            if name not in self.offsets:
                columns[name] = values[indices]
                continue
            lengths = self.lengths(name)[indices]
            offsets[name] = np.cumsum([0, *lengths])
            shift = np.repeat(self.offsets[name][indices] - offsets[name][:-1], lengths)
            columns[name] = values[np.arange(offsets[name][-1]) + shift]
        return ColumnarStore(columns, offsets)

    def lengths(self, name: str) -> np.ndarray:
        """Lengths of the arrays in a column, int64 [n]."""
        return np.diff(self.offsets[name])
