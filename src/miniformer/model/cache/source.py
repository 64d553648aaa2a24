"""Cached keys and values of the source of a decoder.

Letters: B rows or, where rows share a source, sources; S source length, K key-value heads, E head
    width, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.model.cache.protocol import SourceProjection


class SourceCache:
    """The part of a cache that stores keys and values of the source; a base class of caches.

    Attributes:
        dtype: of the stored keys and values.
        cross_kv: keys and values of each layer, two of [B, K, S, E]; None: no source yet.
    """

    dtype: torch.dtype
    cross_kv: list[tuple[Tensor, Tensor]] | None = None

    def source_kv(
        self, layer: int, memory: Tensor, project: SourceProjection
    ) -> tuple[Tensor, Tensor]:
        """Implements `PassCache.source_kv`."""
        if self.cross_kv is None:
            self.cross_kv = []
        if layer == len(self.cross_kv):
            self.cross_kv.append(self._project(memory, project))
        stored, length = self.cross_kv[layer], memory.shape[1]
        num_stored = stored[0].shape[2]
        if length == num_stored:
            return stored
        if length < num_stored:
            raise ValueError(f"a source may grow, not shrink from {num_stored} columns to {length}")
        new = self._project(memory[:, num_stored:], project)
        keys, values = (torch.cat(pair, 2) for pair in zip(stored, new, strict=True))
        self.cross_kv[layer] = keys, values
        return keys, values

    def _project(self, memory: Tensor, project: SourceProjection) -> tuple[Tensor, Tensor]:
        """Keys and values in the cache's type, also under autocast."""
        keys, values = project(memory)
        return keys.to(self.dtype), values.to(self.dtype)

    @property
    def source_nbytes(self) -> int:
        """Bytes of keys and values of the source."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.cross_kv or [])

    def select_sources(self, rows: Tensor) -> None:
        """Keeps these sources only, in this order; rows may repeat."""
        if self.cross_kv is not None:
            self.cross_kv = [(keys[rows], values[rows]) for keys, values in self.cross_kv]

    def insert_sources(self, rows: Tensor, cache: SourceCache) -> None:
        """Replaces sources by those of another cache, int [n]; the shorter ones are padded.

        Raises:
            ValueError: only one of the caches has a source.
        """
        if (self.cross_kv is None) != (cache.cross_kv is None):
            raise ValueError("rows cannot be inserted: one cache has a source, the other has none")
        if self.cross_kv is not None and cache.cross_kv is not None:
            self.cross_kv = [
                (insert_rows(keys, rows, new_keys, 2), insert_rows(values, rows, new_values, 2))
                for (keys, values), (new_keys, new_values) in zip(
                    self.cross_kv, cache.cross_kv, strict=True
                )
            ]

    def source_state(self) -> dict[str, Tensor]:
        """Returns the source part of `Cache.state_dict`."""
        state = {}
        for index, (keys, values) in enumerate(self.cross_kv or []):
            state[f"cross.{index}.keys"], state[f"cross.{index}.values"] = keys, values
        return state

    def load_source_state(self, state_dict: dict[str, Tensor]) -> None:
        """Loads the source part of a state."""
        count = sum(name.startswith("cross.") for name in state_dict) // 2
        self.cross_kv = [
            (state_dict[f"cross.{index}.keys"], state_dict[f"cross.{index}.values"])
            for index in range(count)
        ] or None


def insert_rows(x: Tensor, rows: Tensor, new: Tensor, dim: int) -> Tensor:
    """Replaces rows of x by those of `new`, int [n]; the shorter one gets zeros along `dim`."""
    size = max(x.shape[dim], new.shape[dim])
    x, new = (F.pad(t, (0, 0) * (t.dim() - 1 - dim) + (0, size - t.shape[dim])) for t in (x, new))
    return x.index_copy(0, rows, new)
