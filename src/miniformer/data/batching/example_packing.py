"""Packing of whole examples: windows of several examples, none of which is split.

    tokens   | B a b c|B d e|B f|B g|            B: BOS token, which begins each example
    inputs   | B a b c B f | B d e B g . |        windows of 6; the rest of a window is padding
    labels   | a b c B f B | d e B g B . |        the last label of an example is a BOS token
    segments | 1 1 1 1 2 2 | 1 1 1 2 2 0 |        tokens attend within their own example only

Best-fit decreasing: examples in the order of their lengths, the longest first, each into the window
with the least room that is enough (Johnson 1974; for language models Ding et al. 2024, arXiv
2404.10830). An example that is longer than a window is split into full windows and a rest. Every
token is predicted once per epoch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch

from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.packing import IGNORE_INDEX


class ExamplePackingBatcher:
    """Divides a chunk of examples into batches of windows of whole examples.

    A plan is an object array of windows. A window is int64 [spans, 2]: the start of each span in
    the column `ids`, and its length. A span is an example, or a part of one that is too long.

    Args:
        seq_len, batch_size, bos_id, columns: see `PackedBatcher`.
    """

    def __init__(
        self, *, seq_len: int, batch_size: int, bos_id: int, columns: Sequence[str] = ()
    ) -> None:
        self.seq_len, self.batch_size, self.bos_id = seq_len, batch_size, bos_id
        self.columns = columns

    def row_tokens(self, chunk: ColumnarStore) -> float:
        """Tokens per window, padding included."""
        return self.seq_len

    def plan_batches(
        self, chunk: ColumnarStore, rng: np.random.Generator | None
    ) -> list[np.ndarray]:
        """Windows of each batch, object [B] each, with nearly equal B.

        With `rng`, examples of one length are in random order, and so are the windows.
        """
        spans = self._spans(chunk)
        order = np.arange(len(spans)) if rng is None else rng.permutation(len(spans))
        order = order[np.argsort(-spans[order, 1], kind="stable")]
        groups = best_fit(spans[order, 1].tolist(), self.seq_len)
        windows = np.empty(len(groups), dtype=object)
        for index, group in enumerate(groups):
            windows[index] = spans[order[group]]
        if rng is not None:
            rng.shuffle(windows)
        return np.array_split(windows, -(-len(windows) // self.batch_size))

    def _spans(self, chunk: ColumnarStore) -> np.ndarray:
        """Start and length of each span, int64 [spans, 2]."""
        lengths, starts = chunk.lengths("ids"), chunk.offsets["ids"][:-1]
        counts = -(-lengths // self.seq_len)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first = number * self.seq_len
        rest = np.minimum(np.repeat(lengths, counts) - first, self.seq_len)
        return np.stack([np.repeat(starts, counts) + first, rest], 1)

    def summary(self, chunk: ColumnarStore) -> str:
        """A line with the number of windows, the share of padding, and examples that are split."""
        num_windows = sum(map(len, self.plan_batches(chunk, None)))
        padding = 1 - len(chunk.columns["ids"]) / (num_windows * self.seq_len)
        line = f"{num_windows:,} windows of {self.seq_len} tokens, {padding:.1%} padding"
        num_long = int((chunk.lengths("ids") > self.seq_len).sum())
        return line + (f"; {num_long:,} examples are longer and are split" if num_long else "")

    def collate(
        self, chunk: ColumnarStore, windows: np.ndarray, rng: np.random.Generator | None = None
    ) -> Batch:
        """Batch of windows; see `PackedBatcher.collate`."""
        shape = (len(windows), self.seq_len)
        tokens, ends = chunk.columns["ids"], chunk.offsets["ids"]
        following = np.append(tokens[1:], self.bos_id)
        inputs, labels = np.full(shape, self.bos_id), np.full(shape, IGNORE_INDEX)
        segments = np.zeros(shape, dtype=np.int64)
        more = {name: np.zeros(shape, chunk.columns[name].dtype) for name in self.columns}
        for row, window in enumerate(windows):
            first = 0
            for number, (start, length) in enumerate(window.tolist(), 1):
                columns, source = slice(first, first + length), slice(start, start + length)
                inputs[row, columns], labels[row, columns] = tokens[source], following[source]
                if ends[np.searchsorted(ends, start + length)] == start + length:
                    labels[row, first + length - 1] = self.bos_id
                if "learn" in chunk.columns:
                    labels[row, columns][~chunk.columns["learn"][source]] = IGNORE_INDEX
                segments[row, columns] = number
                for name, values in more.items():
                    values[row, columns] = chunk.columns[name][source]
                first += length
        batch: Batch = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
        if (segments != 1).any():
            batch["segment_ids"] = torch.from_numpy(segments)
        if "bytes" in chunk.columns:
            learned = chunk.columns.get("learn", tokens)
            per_label = float(chunk.columns["bytes"].sum()) / max(1, _num_labels(learned))
            batch["bytes"] = per_label * int((labels != IGNORE_INDEX).sum())
        return {**batch, **{name: torch.from_numpy(values) for name, values in more.items()}}

    def label_examples(self, chunk: ColumnarStore, windows: np.ndarray) -> np.ndarray:
        """Index of the example of each label, int64 [B, T]; that of padding is the last one."""
        result = np.zeros((len(windows), self.seq_len), dtype=np.int64)
        for row, window in enumerate(windows):
            examples = np.searchsorted(chunk.offsets["ids"], window[:, 0], side="right") - 1
            filled = np.repeat(examples, window[:, 1])
            result[row] = np.pad(filled, (0, self.seq_len - len(filled)), mode="edge")
        return result

    def example_indices(self, chunk: ColumnarStore, windows: np.ndarray) -> np.ndarray:
        """Indices of the examples within windows."""
        return np.unique(self.label_examples(chunk, windows))


def _num_labels(learned: np.ndarray) -> int:
    """Number of labels by the column `learn`, or by the tokens, each of which has one."""
    return int(learned.sum()) if learned.dtype == bool else len(learned)


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Puts items in the order given into the bin with the least room that is enough.

    Args:
        lengths: length of each item, from 1 to `capacity`.
        capacity: size of a bin.

    Returns:
        Indices of the items of each bin.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room -> bins with so much room
    rooms: list[int] = []  # ascending
    for item, length in enumerate(lengths):
        position = bisect_left(rooms, length)
        if position == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[position]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[position]
        bins[chosen].append(item)
        if room > length:
            if room - length not in by_room:
                insort(rooms, room - length)
            by_room.setdefault(room - length, []).append(chosen)
    return bins
