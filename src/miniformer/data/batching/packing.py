"""Packing: concatenated documents, divided into windows without padding.

    tokens   | B a b c d B e f B g h i ...        B: BOS token, which precedes each document
    inputs   | B a b c | d B e f | B g h i        windows of 4
    labels   | a b c d | B e f B | g h i ...      the last label of a document is the next BOS
    segments | 1 1 1 1 | 1 2 2 2 | 1 1 1 1        tokens attend within their own document only

Every token is predicted once per epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import Batch

IGNORE_INDEX = -100  # label without a loss, as in torch


class PackedBatcher:
    """Divides a chunk of documents into batches of windows.

    A chunk has the column `ids`, token ids of each document or text block. It may have `learn`,
    bool for each token, true if the one that follows it is predicted, and `bytes`, the UTF-8 bytes
    of the predicted text.

    Args:
        seq_len: window length T.
        batch_size: maximum number of windows per batch, B.
        bos_id: token that precedes a document.
        wrap: whether windows wrap around at the end of a chunk, as in training; otherwise the rest
            is padding.
        columns: further columns with a value for each token, which become tensors [B, T].
    """

    def __init__(
        self, *, seq_len: int, batch_size: int, bos_id: int, wrap: bool, columns: Sequence[str] = ()
    ) -> None:
        self.seq_len, self.batch_size, self.columns = seq_len, batch_size, columns
        self.bos_id, self.wrap = bos_id, wrap

    def row_tokens(self, chunk: ColumnarStore) -> float:
        """Tokens per window."""
        return self.seq_len

    def num_windows(self, chunk: ColumnarStore) -> int:
        """Number of windows that cover the chunk once."""
        full, rest = divmod(len(chunk.columns["ids"]), self.seq_len)
        return max(1, full) if self.wrap else full + (rest > 0)

    def plan_batches(
        self, chunk: ColumnarStore, rng: np.random.Generator | None
    ) -> list[np.ndarray]:
        """Start positions of each batch's windows, int [B] each, with nearly equal B.

        With `rng`, windows have a random offset and a random order.
        """
        starts = np.arange(self.num_windows(chunk)) * self.seq_len
        if rng is not None:
            offset = rng.integers(len(chunk.columns["ids"]))
            starts = rng.permutation(starts) + offset
        return np.array_split(starts, -(-len(starts) // self.batch_size))

    def collate(
        self, chunk: ColumnarStore, starts: np.ndarray, rng: np.random.Generator | None = None
    ) -> Batch:
        """Batch of the windows at `starts`.

        Returns:
            `input_ids` and `labels`, int64 [B, T]; `segment_ids`, if a window has several documents
            or padding; `bytes`, the approximate bytes of text of the labels.
        """
        tokens = chunk.columns["ids"]
        columns = starts[:, None] + np.arange(self.seq_len + 1)  # [B, T + 1]
        rows = np.take(tokens, columns, mode="wrap").astype(np.int64)
        inputs, labels = np.ascontiguousarray(rows[:, :-1]), rows[:, 1:].copy()
        predicted = len(tokens)
        if not self.wrap:
            # The last token's label is the BOS token at the start, unless the chunk starts within
            # a text; what follows is padding.
            predicted -= int(tokens[0] != self.bos_id)
            labels[columns[:, :-1] >= predicted] = IGNORE_INDEX
        padding = labels == IGNORE_INDEX
        if "learn" in chunk.columns:
            learned = np.take(chunk.columns["learn"], columns[:, :-1], mode="wrap")
            labels[~learned] = IGNORE_INDEX
            predicted = int(chunk.columns["learn"].sum())
        num_bytes = chunk.columns["bytes"].sum() if "bytes" in chunk.columns else 0.0
        bytes_per_label = float(num_bytes) / max(1, predicted)
        batch: Batch = {
            "input_ids": torch.from_numpy(inputs),
            "labels": torch.from_numpy(labels),
            "bytes": bytes_per_label * int((labels != IGNORE_INDEX).sum()),
        }
        for name in self.columns:
            values = np.take(chunk.columns[name], columns[:, :-1], axis=0, mode="wrap")
            batch[name] = torch.from_numpy(values)
        is_start = inputs == self.bos_id
        is_start[:, 0] = False
        if is_start.any() or padding.any():
            segments = np.where(padding, 0, is_start.cumsum(1) + 1)
            batch["segment_ids"] = torch.from_numpy(segments)
        return batch

    def label_examples(self, chunk: ColumnarStore, starts: np.ndarray) -> np.ndarray:
        """Index of the example of each label in the windows at `starts`, int64 [B, T].

        The BOS token after a document belongs to that document. Padding belongs to the last one.
        """
        size, positions = len(chunk.columns["ids"]), starts[:, None] + np.arange(self.seq_len)
        positions = positions % size if self.wrap else np.minimum(positions, size - 1)
        return np.searchsorted(chunk.offsets["ids"], positions, side="right") - 1

    def example_indices(self, chunk: ColumnarStore, starts: np.ndarray) -> np.ndarray:
        """Indices of the examples within the windows at `starts`."""
        size, columns = len(chunk.columns["ids"]), starts[:, None] + np.arange(self.seq_len)
        positions = columns.ravel() % size if self.wrap else columns[columns < size]
        return np.unique(np.searchsorted(chunk.offsets["ids"], positions, side="right") - 1)
