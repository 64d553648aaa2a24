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
        length: names of arrays; an example is as long as the longest of them.
        batch_size: examples in a batch, on average.
        batch_tokens: tokens in a batch at most, padding included, or one example; None: as many as
            `batch_size` examples of the pool's mean length have.
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

    def cut(self, pool: Table, random: np.random.Generator | None) -> list[np.ndarray]:
        """Each batch's examples, by index, in random order; None: in one that never changes."""
        each = [pool.lengths(name) for name in self.length]
        lengths, sums = np.maximum.reduce(each), np.add.reduce(each)
        tokens = self.batch_tokens or self.batch_size * max(1.0, float(lengths.mean()))
        # Among examples of one length, chance decides who is with whom.
        order = np.arange(len(pool)) if random is None else random.permutation(len(pool))
        order = order[np.lexsort((sums[order], lengths[order]))]
        batches, begin = [], 0
        for end, index in enumerate(order):
            if end > begin and (end + 1 - begin) * lengths[index] > tokens:
                batches.append(order[begin:end])
                begin = end
        batches.append(order[begin:])
        # Mixed in any case: the first batches of a validation stand for all of them.
        (np.random.default_rng(0) if random is None else random).shuffle(batches)
        return batches

    def make(self, pool: Table, some: np.ndarray, random: np.random.Generator | None) -> Batch:
        """The batch of the examples `some`."""
        return self.collate([pool[int(index)] for index in some], random)


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
