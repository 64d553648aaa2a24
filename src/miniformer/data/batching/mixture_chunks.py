"""Chunks of a mixture: each epoch has other records; see `miniformer.data.reading.mixture`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from miniformer.data.batching.chunks import EncodeFn, RecordChunks
from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.reading.records import Records


class MixtureChunks(RecordChunks):
    """Chunks of records that are drawn by the weights of their sources.

    Records in memory are encoded once, each of them.

    Args:
        records: records with a `mixture`.
        encode_fn: makes examples of records.
        seed: seed of the draws.
        options: see `RecordChunks`.
    """

    def __init__(self, records: Records, encode_fn: EncodeFn, *, seed: int, **options: Any) -> None:
        super().__init__(records, encode_fn, **options)
        self.seed = seed
        if self.in_memory is not None and "record" not in self.in_memory.columns:
            self.in_memory = None  # it is not known which examples a record gives

    def iter_epoch(
        self, rng: np.random.Generator | None, start_chunk: int = 0, epoch: int = 0
    ) -> Iterator[ColumnarStore]:
        """The draws of an epoch; without `rng`, each record once, in order."""
        if rng is None or self.in_memory is None:
            yield from super().iter_epoch(rng, start_chunk, epoch)
        elif not start_chunk:
            yield self.in_memory.take(self._examples_of(self._draw(epoch)))

    def _chunk_indices(self, rng: np.random.Generator | None, epoch: int) -> list[np.ndarray]:
        if rng is None:
            return super()._chunk_indices(rng, epoch)
        draws = self._draw(epoch)
        return np.split(draws, range(self.chunk_size, len(draws), self.chunk_size))

    def _draw(self, epoch: int) -> np.ndarray:
        return np.asarray(self.records.mixture.draw(self.seed, epoch))

    def _examples_of(self, records: np.ndarray) -> np.ndarray:
        """Indices of the examples of records, int64 [n]."""
        assert self.in_memory is not None
        numbers = self.in_memory.columns["record"]  # ascending
        first, last = (np.searchsorted(numbers, records, side) for side in ("left", "right"))
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(np.repeat(first, counts) + within)
