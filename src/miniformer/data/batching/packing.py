"""Packing: documents laid end to end in one long row of tokens, cut into windows without padding.

    tokens   | B a b c d B e f B g h i ...        B: the boundary token, which begins each document
    inputs   | B a b c | d B e f | B g h i        (windows of 4)
    labels   | a b c d | B e f B | g h i ...      the boundary is also the label that ends a
    document segments | 1 1 1 1 | 1 2 2 2 | 1 1 1 1        tokens attend within their own document
    only

Every token is predicted once an epoch; none is wasted on padding.
"""

from __future__ import annotations

import numpy as np
import torch

from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import Batch

IGNORE_INDEX = -100  # a label that is not predicted; torch's own default


class PackedBatcher:
    """Cuts a pool of documents into batches of windows.

    A pool is a table with `ids`, token ids of each document or piece of one, and `bytes`, the
    UTF-8 bytes of its text.

    Args:
        seq_len: window length T.
        batch_size: windows in a batch at most, B.
        boundary_id: the token that begins a document.
        endless: past its end a pool begins again, as training wants; else the rest is padding.
    """

    def __init__(self, *, seq_len: int, batch_size: int, bos_id: int, wrap: bool) -> None:
        self.seq_len, self.batch_size = seq_len, batch_size
        self.bos_id, self.wrap = bos_id, wrap

    def row_tokens(self, chunk: ColumnarStore) -> float:
        """Tokens of a window."""
        return self.seq_len

    def num_windows(self, chunk: ColumnarStore) -> int:
        """Number of windows that cover the pool's row once."""
        full, rest = divmod(len(chunk.columns["ids"]), self.seq_len)
        return max(1, full) if self.wrap else full + (rest > 0)

    def plan_batches(
        self, chunk: ColumnarStore, rng: np.random.Generator | None
    ) -> list[np.ndarray]:
        """The columns at which each batch's windows start, int [B] each, B as equal as can be.

        With `random`, from a random offset and in random order.
        """
        starts = np.arange(self.num_windows(chunk)) * self.seq_len
        if rng is not None:
            offset = rng.integers(len(chunk.columns["ids"]))
            starts = rng.permutation(starts) + offset
        return np.array_split(starts, -(-len(starts) // self.batch_size))

    def collate(
        self, chunk: ColumnarStore, starts: np.ndarray, rng: np.random.Generator | None = None
    ) -> Batch:
        """The batch of the windows that start at `starts`.

        Returns:
            `input_ids`, `labels`, int64 [B, T]; where documents meet `segment_ids`; and `bytes`,
            about how many bytes of text the labels stand for.
        """
        tokens = chunk.columns["ids"]
        columns = starts[:, None] + np.arange(self.seq_len + 1)  # [B, T + 1]
        rows = np.take(tokens, columns, mode="wrap").astype(np.int64)
        inputs, labels = np.ascontiguousarray(rows[:, :-1]), rows[:, 1:].copy()
        predicted = len(tokens)
        if not self.wrap:
            # The last token's label is the boundary at which the row wraps, unless the pool is a
            # middle part of a text; what follows is padding.
            predicted -= int(tokens[0] != self.bos_id)
            labels[columns[:, :-1] >= predicted] = IGNORE_INDEX
        per_label = float(chunk.columns["bytes"].sum()) / max(1, predicted)
        batch: Batch = {
            "input_ids": torch.from_numpy(inputs),
            "labels": torch.from_numpy(labels),
            "bytes": per_label * int((labels != IGNORE_INDEX).sum()),
        }
        begins = inputs == self.bos_id
        begins[:, 0] = False
        padding = labels == IGNORE_INDEX
        if begins.any() or padding.any():
            segments = np.where(padding, 0, begins.cumsum(1) + 1)
            batch["segment_ids"] = torch.from_numpy(segments)
        return batch

    def example_indices(self, chunk: ColumnarStore, starts: np.ndarray) -> np.ndarray:
        """Numbers of the examples that lie within the windows that start at `starts`."""
        row, columns = len(chunk.columns["ids"]), starts[:, None] + np.arange(self.seq_len)
        places = columns[columns < row] if not self.wrap else columns.ravel() % row
        return np.unique(np.searchsorted(chunk.offsets["ids"], places, side="right") - 1)
