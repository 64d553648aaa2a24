"""Length buckets: batches of examples of like length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniformer.data.batching.columnar import ColumnarStore, Example

Batch = dict[str, Any]
CollateFn = Callable[[list[Example], np.random.Generator | None], Batch]


class LengthBucketBatcher:
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
        collate_fn: CollateFn,
        *,
        length_columns: tuple[str, ...],
        batch_size: int,
        batch_tokens: int | None = None,
    ) -> None:
        self.collate_fn, self.length_columns = collate_fn, length_columns
        self.batch_size, self.batch_tokens = batch_size, batch_tokens

    def row_tokens(self, chunk: ColumnarStore) -> float:
        """Tokens of an example, of all its arrays, on average."""
        return max(1.0, float(self._lengths(chunk).sum(1).mean()))

    def plan_batches(
        self, chunk: ColumnarStore, rng: np.random.Generator | None
    ) -> list[np.ndarray]:
        """Each batch's examples, by index, in random order; None: in one that never changes."""
        lengths = self._lengths(chunk)
        tokens = self.batch_tokens or self.batch_size * self.row_tokens(chunk)
        order = self._sort_by_length(lengths, rng)
        batches, begin, longest = [], 0, [0] * lengths.shape[1]
        for end, found in enumerate(lengths[order].tolist()):
            longest = list(map(max, longest, found))
            if end > begin and (end + 1 - begin) * sum(longest) > tokens:
                batches.append(order[begin:end])
                begin, longest = end, found
        batches.append(order[begin:])
        # Mixed in any case: the first batches of a validation stand for all of them.
        (np.random.default_rng(0) if rng is None else rng).shuffle(batches)
        return batches

    def _lengths(self, chunk: ColumnarStore) -> np.ndarray:
        """The lengths of each example's arrays, [n, arrays]."""
        return np.stack([chunk.lengths(name) for name in self.length_columns], 1)

    def _sort_by_length(self, lengths: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Examples by one length, those alike by the next; chance decides the rest.

        The next length goes up, then down, then up again, so that neighbours are alike in both.
        """
        count, arrays = lengths.shape
        if rng is None:
            order, columns = np.arange(count), list(range(arrays))
        else:
            order, columns = rng.permutation(count), rng.permutation(arrays).tolist()
        first, *others = (lengths[order, column] for column in columns)
        ways = 1 - 2 * (first % 2)
        return order[np.lexsort([*(ways * other for other in others[::-1]), first])]

    def collate(
        self, chunk: ColumnarStore, indices: np.ndarray, rng: np.random.Generator | None
    ) -> Batch:
        """The batch of the examples `some`."""
        return self.collate_fn([chunk[int(index)] for index in indices], rng)

    def example_indices(self, chunk: ColumnarStore, indices: np.ndarray) -> np.ndarray:
        """Numbers of the examples in a batch."""
        return indices


def pad_sequences(
    sequences: list[np.ndarray], padding_value: float = 0
) -> tuple[Tensor, Tensor | None]:
    """Rows of unequal length as one tensor, filled on the right.

    Args:
        rows: [T_i] or [T_i, F] each.
        fill: what stands behind a row's end.

    Returns:
        [B, T] or [B, T, F], int64 or float32; and its mask, bool [B, T], True = a real position;
        None: all are.
    """
    lengths = np.array([len(row) for row in sequences])
    kind = np.float32 if sequences[0].dtype.kind == "f" else np.int64
    out = np.full(
        (len(sequences), lengths.max(), *sequences[0].shape[1:]), padding_value, dtype=kind
    )
    for index, row in enumerate(sequences):
        out[index, : len(row)] = row
    mask = np.arange(out.shape[1]) < lengths[:, None]
    return torch.from_numpy(out), None if mask.all() else torch.from_numpy(mask)
