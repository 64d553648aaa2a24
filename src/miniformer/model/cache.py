"""The key-value cache. It owns position: callers only say which of the new tokens are real.

Letters: B batch, T new tokens, S tokens so far, C capacity, K key-value heads, E head width, L
    layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.model.masks import AttentionMask, make_cached_mask


class KVCache:
    """Keys and values of earlier tokens, in memory taken once.

    A forward pass first calls `extend`, which places its tokens and gives their positions and mask;
    each attention layer then calls `append`. Rows of a batch may hold padding anywhere: padded
    columns are never attended to and take no position.

    Args:
        n_layers: number L of layers.
        batch_size: number B of rows.
        capacity: number C of columns, the most tokens a row can hold.
        kv_heads: number K of key-value heads.
        head_dim: width E of a head.
        device: where keys and values live.
        dtype: their type.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch_size: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (n_layers, batch_size, kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0  # columns in use
        self._start = 0  # first column of the pass under way
        self._real: Tensor | None = None  # bool [B, C], once padding was seen

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def extend(self, attention_mask: Tensor | None, new: int) -> tuple[Tensor, AttentionMask]:
        """Makes room for T = `new` tokens.

        Args:
            attention_mask: bool [B, T], True = a real token; None: all are.
            new: number of columns to add.

        Returns:
            Positions, int [B, T] ([1, T] where all rows are alike), and the mask of the new queries
            over every column so far.

        Raises:
            ValueError: the cache is full.
        """
        start, stop = self.length, self.length + new
        if stop > self.capacity:
            raise ValueError(
                f"{stop} tokens do not fit a cache of capacity {self.capacity}; make a larger one"
            )
        device = self.keys.device
        if attention_mask is not None and self._real is None and not bool(attention_mask.all()):
            self._real = torch.zeros(
                self.keys.shape[1], self.capacity, dtype=torch.bool, device=device
            )
            self._real[:, :start] = True
        if self._real is None:
            positions = torch.arange(start, stop, device=device)[None]
        else:
            self._real[:, start:stop] = True if attention_mask is None else attention_mask
            counts = self._real[:, :stop].cumsum(1) - 1
            positions = counts[:, start:].clamp_min(0)
        self._start, self.length = start, stop
        real = None if self._real is None else self._real[:, :stop]
        return positions, make_cached_mask(real, start=start, stop=stop, device=device)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values, [B, K, T, E]; returns all so far, [B, K, S, E]."""
        self.keys[layer, :, :, self._start : self.length] = keys
        self.values[layer, :, :, self._start : self.length] = values
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]
