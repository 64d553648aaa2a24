"""Packing: documents laid end to end in one long row of tokens, cut into windows without padding.

    tokens   | B a b c d B e f B g h i ...        B: the boundary token, which begins each document
    inputs   | B a b c | d B e f | B g h i        (windows of 4)
    labels   | a b c d | B e f B | g h i ...      the boundary is also the label that ends a
    document segments | 1 1 1 1 | 1 2 2 2 | 1 1 1 1        tokens attend within their own document
    only

Every token is predicted once an epoch; none is wasted on padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a label that is not predicted; torch's own default
Window = tuple[np.ndarray, np.ndarray]


class PackedTokens:
    """Windows of a packed row, by the column at which they start; fits a torch `DataLoader`.

    Args:
        tokens: the whole row, int [n]; it begins with a boundary.
        seq_len: window length T.
        boundary_id: the token that begins a document.
        n_bytes: UTF-8 bytes of the text, for figures per byte.
        endless: past its end the row begins again, as training wants; else the rest is padding.
    """

    def __init__(
        self, tokens: np.ndarray, *, seq_len: int, boundary_id: int, n_bytes: int, endless: bool
    ) -> None:
        self.tokens, self.seq_len, self.boundary_id = tokens, seq_len, boundary_id
        self.n_bytes, self.endless = n_bytes, endless

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each predicted token."""
        return self.n_bytes / len(self.tokens)

    def __len__(self) -> int:
        """Number of windows that cover the row once."""
        full, rest = divmod(len(self.tokens), self.seq_len)
        return max(1, full) if self.endless else full + (rest > 0)

    def __getitem__(self, start: int) -> Window:
        """Inputs and labels, int64 [T] each, of the window that starts at column `start`."""
        columns = np.arange(start, start + self.seq_len + 1)
        row = np.take(self.tokens, columns, mode="wrap").astype(np.int64)
        inputs, labels = row[:-1], row[1:].copy()
        if not self.endless:
            # The last token's label is the boundary at which the row wraps; what follows is
            # padding.
            labels[columns[:-1] >= len(self.tokens)] = IGNORED
        return inputs, labels

    def collate(self, windows: list[Window]) -> dict[str, Tensor]:
        """A batch: `input_ids`, `labels`, int64 [B, T], and where documents meet `segment_ids`."""
        inputs = np.stack([window[0] for window in windows])
        labels = np.stack([window[1] for window in windows])
        batch = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
        begins = inputs == self.boundary_id
        begins[:, 0] = False
        padding = labels == IGNORED
        if begins.any() or padding.any():
            segments = np.where(padding, 0, begins.cumsum(1) + 1)
            batch["segment_ids"] = torch.from_numpy(segments)
        return batch


class WindowSampler:
    """Start columns of one epoch's windows: from a random offset, in random order.

    Args:
        data: the row to cut.
        seed: with the epoch, decides offset and order.
    """

    def __init__(self, data: PackedTokens, *, seed: int) -> None:
        self.data, self.seed, self.epoch = data, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        offset = int(random.integers(len(self.data.tokens)))
        for index in random.permutation(len(self.data)):
            yield offset + int(index) * self.data.seq_len
