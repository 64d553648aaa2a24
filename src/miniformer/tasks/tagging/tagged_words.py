"""Predicted words of an evaluation or of a user's inputs, in the order of their sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from miniformer.tasks.tagging.schemes import find_spans, invalid_tag, make_tags


@dataclasses.dataclass(frozen=True)
class TaggedWords:
    """Words of S sequences, N in all.

    Args:
        classes: the tags.
        records: index of each sequence's record, ascending, int64 [S].
        starts: index of each sequence's first word, and N, int64 [S + 1].
        predictions: predicted class, int64 [N].
        scores: probability of the predicted class, float32 [N].
        labels: true class, int64 [N]; None: not known.
        losses: cross-entropy in nats, float32 [N]; None: not known.
    """

    classes: list[Any]
    records: np.ndarray
    starts: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray
    labels: np.ndarray | None = None
    losses: np.ndarray | None = None

    @classmethod
    def from_stats(
        cls, stats: Sequence[dict[str, Any]], classes: list[Any], scheme: str | None = None
    ) -> TaggedWords:
        """Words of batches of windows.

        Args:
            stats: arrays [n] of each batch: `word_records`, `positions` in the record, `in_parts`
                (true if the record has several windows), and the columns above.
            classes: the tags.
            scheme: makes the predictions of several windows valid; None: predictions stay.
        """
        columns = {
            name: np.concatenate([np.asarray(batch[name]) for batch in stats])
            for name in (
                *("word_records", "positions", "in_parts", "predictions", "scores"),
                *(name for name in ("labels", "losses") if name in stats[0]),
            )
        }
        order = np.lexsort((columns["positions"], columns["word_records"]))
        columns = {name: values[order] for name, values in columns.items()}
        records, starts = np.unique(columns["word_records"], return_index=True)
        tagged = cls(
            classes, records, np.append(starts, len(order)),
            columns["predictions"], columns["scores"], columns.get("labels"), columns.get("losses"),
        )  # fmt: skip
        if scheme is not None:
            for row in np.flatnonzero(columns["in_parts"][starts]):
                tagged._make_valid(int(row), scheme)
        return tagged

    def _make_valid(self, row: int, scheme: str) -> None:
        """Makes the predictions of a sequence valid, which may not fit at a border of windows."""
        part = slice(*self.starts[row : row + 2])
        tags = [self.classes[index] for index in self.predictions[part]]
        if invalid_tag(tags, scheme) is not None:
            valid = make_tags(find_spans(tags, scheme), len(tags), scheme)
            if set(valid) <= set(self.classes):
                self.predictions[part] = [self.classes.index(tag) for tag in valid]

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of words, [N, ...], by sequence."""
        return np.split(values, self.starts[1:-1])

    def tags(self, values: np.ndarray) -> list[list[Any]]:
        """Tags of each sequence, from classes of words, int [N]."""
        return [[self.classes[index] for index in part] for part in self.split(values)]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of words' values, [N, ...], by sequence, float64 [S, ...]."""
        return np.add.reduceat(values.astype(np.float64), self.starts[:-1])
