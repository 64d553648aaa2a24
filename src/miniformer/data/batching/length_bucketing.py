"""Length bucketing: batches of examples of similar length, with little padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniformer.data.batching.columnar import ColumnarStore, Example

Batch = dict[str, Any]
RowSampler = Callable[[ColumnarStore, np.random.Generator], np.ndarray]
CollateFn = Callable[[list[Example], np.random.Generator | None], Batch]


class LengthBucketBatcher:
    """Divides a chunk of examples into batches of similar length.

    Args:
        collate_fn: makes a batch of examples; in training it may draw random numbers.
        length_columns: columns that are padded.
        batch_size: mean number of examples per batch.
        batch_tokens: maximum number of tokens per batch, over all columns and including padding; a
            batch has at least one example. None: `batch_size` times the mean length of an example.
        sample_rows: draws the examples of a chunk with repetitions, for training; None: each once.
    """

    def __init__(
        self,
        collate_fn: CollateFn,
        *,
        length_columns: tuple[str, ...],
        batch_size: int,
        batch_tokens: int | None = None,
        sample_rows: RowSampler | None = None,
    ) -> None:
        self.sample_rows = sample_rows
        self.collate_fn, self.length_columns = collate_fn, length_columns
        self.batch_size, self.batch_tokens = batch_size, batch_tokens

    def row_tokens(self, chunk: ColumnarStore) -> float:
        """Mean number of tokens per example, over all columns."""
        return max(1.0, float(self._lengths(chunk).sum(1).mean()))

    def plan_batches(
        self, chunk: ColumnarStore, rng: np.random.Generator | None
    ) -> list[np.ndarray]:
        """Indices of each batch's examples, in random order; without `rng`, in a fixed order."""
        lengths = self._lengths(chunk)
        max_tokens = self.batch_tokens or self.batch_size * self.row_tokens(chunk)
        rows = None
        if rng is not None and self.sample_rows is not None:
            rows = self.sample_rows(chunk, rng)
            lengths = lengths[rows]
        order = self._sort_by_length(lengths, rng)
        batches, start, longest = [], 0, [0] * lengths.shape[1]
        for stop, row_lengths in enumerate(lengths[order].tolist()):
            longest = list(map(max, longest, row_lengths))
            if stop > start and (stop + 1 - start) * sum(longest) > max_tokens:
                batches.append(order[start:stop])
                start, longest = stop, row_lengths
        batches.append(order[start:])
        # Always shuffled, so that the first validation batches are a sample of all lengths.
        (np.random.default_rng(0) if rng is None else rng).shuffle(batches)
        return batches if rows is None else [rows[batch] for batch in batches]

    def _lengths(self, chunk: ColumnarStore) -> np.ndarray:
        """Lengths of each example's arrays, [n, columns]."""
        return np.stack([chunk.lengths(name) for name in self.length_columns], 1)

    def _sort_by_length(self, lengths: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Indices sorted by one length, then by the next; ties are in random order.

        The secondary length alternately ascends and descends, so that neighbors are similar in
        both.
        """
        count, num_columns = lengths.shape
        if rng is None:
            order, columns = np.arange(count), list(range(num_columns))
        else:
            order, columns = rng.permutation(count), rng.permutation(num_columns).tolist()
        primary, *secondary = (lengths[order, column] for column in columns)
        sign = 1 - 2 * (primary % 2)
        return order[np.lexsort([*(sign * length for length in secondary[::-1]), primary])]

    def collate(
        self, chunk: ColumnarStore, indices: np.ndarray, rng: np.random.Generator | None
    ) -> Batch:
        """Batch of the examples at `indices`."""
        return self.collate_fn([chunk[int(index)] for index in indices], rng)

    def example_indices(self, chunk: ColumnarStore, indices: np.ndarray) -> np.ndarray:
        """Indices of the examples in a batch."""
        return indices


def pad_sequences(
    sequences: list[np.ndarray], padding_value: float = 0
) -> tuple[Tensor, Tensor | None]:
    """Pads sequences, [T_i] or [T_i, F] each, on the right to one tensor.

    Returns:
        Tensor [B, T] or [B, T, F], int64 or float32; and its mask, bool [B, T], True = a real
        position, or None without padding.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    dtype = np.float32 if sequences[0].dtype.kind == "f" else np.int64
    shape = (len(sequences), lengths.max(), *sequences[0].shape[1:])
    padded = np.full(shape, padding_value, dtype=dtype)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    mask = np.arange(padded.shape[1]) < lengths[:, None]
    return torch.from_numpy(padded), None if mask.all() else torch.from_numpy(mask)
