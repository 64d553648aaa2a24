"""Length buckets: batches of examples of like length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniformer.data.table import Example, Table

Batch = dict[str, Any]
Collate = Callable[[list[Example], np.random.Generator | None], Batch]


class LengthBuckets:
    """Cuts a pool of examples into batches of like length.

    Args:
        collate: makes a batch of examples; in training it may draw random numbers.
        length: names of the arrays that are padded.
        batch_size: examples in a batch, on average.
        batch_tokens: tokens in a batch at most, of all arrays and padding included, or one example;
            None: as many as `batch_size` examples of the pool's mean length have.
    """

    def __init__(
        self,
        collate: Collate,
        *,
        length: tuple[str, ...],
        batch_size: int,
        batch_tokens: int | None = None,
    ) -> None:
        self.collate, self.length = collate, length
        self.batch_size, self.batch_tokens = batch_size, batch_tokens

    def row_tokens(self, pool: Table) -> float:
        """Tokens of an example, of all its arrays, on average."""
        return max(1.0, float(self._lengths(pool).sum(1).mean()))

    def cut(self, pool: Table, random: np.random.Generator | None) -> list[np.ndarray]:
        """Each batch's examples, by index, in random order; None: in one that never changes."""
        lengths = self._lengths(pool)
        tokens = self.batch_tokens or self.batch_size * self.row_tokens(pool)
        order = self._order(lengths, random)
        batches, begin, longest = [], 0, [0] * lengths.shape[1]
        for end, found in enumerate(lengths[order].tolist()):
            longest = list(map(max, longest, found))
            if end > begin and (end + 1 - begin) * sum(longest) > tokens:
                batches.append(order[begin:end])
                begin, longest = end, found
        batches.append(order[begin:])
        # Mixed in any case: the first batches of a validation stand for all of them.
        (np.random.default_rng(0) if random is None else random).shuffle(batches)
        return batches

    def _lengths(self, pool: Table) -> np.ndarray:
        """The lengths of each example's arrays, [n, arrays]."""
        return np.stack([pool.lengths(name) for name in self.length], 1)

    def _order(self, lengths: np.ndarray, random: np.random.Generator | None) -> np.ndarray:
        """Examples by one length, those alike by the next; chance decides the rest.

        The next length goes up, then down, then up again, so that neighbours are alike in both.
        """
        count, arrays = lengths.shape
        if random is None:
            order, columns = np.arange(count), list(range(arrays))
        else:
            order, columns = random.permutation(count), random.permutation(arrays).tolist()
        first, *others = (lengths[order, column] for column in columns)
        ways = 1 - 2 * (first % 2)
        return order[np.lexsort([*(ways * other for other in others[::-1]), first])]

    def make(self, pool: Table, some: np.ndarray, random: np.random.Generator | None) -> Batch:
        """The batch of the examples `some`."""
        return self.collate([pool[int(index)] for index in some], random)

    def examples(self, pool: Table, some: np.ndarray) -> np.ndarray:
        """Numbers of the examples in a batch."""
        return some


def pad(rows: list[np.ndarray], fill: float = 0) -> tuple[Tensor, Tensor | None]:
    """Rows of unequal length as one tensor, filled on the right.

    Args:
        rows: [T_i] or [T_i, F] each.
        fill: what stands behind a row's end.

    Returns:
        [B, T] or [B, T, F], int64 or float32; and its mask, bool [B, T], True = a real position;
        None: all are.
    """
    lengths = np.array([len(row) for row in rows])
    kind = np.float32 if rows[0].dtype.kind == "f" else np.int64
    out = np.full((len(rows), lengths.max(), *rows[0].shape[1:]), fill, dtype=kind)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    mask = np.arange(out.shape[1]) < lengths[:, None]
    return torch.from_numpy(out), None if mask.all() else torch.from_numpy(mask)
