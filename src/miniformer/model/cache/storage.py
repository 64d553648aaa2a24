"""Storage of one layer's keys and values. `KVCache` assigns columns to tokens.

Letters: B batch, T new tokens, S tokens so far, C capacity, K key-value heads, E head width, W
    sliding window.
"""

from __future__ import annotations

import torch
from torch import Tensor

Shape = tuple[int, int, int, int]


class CacheState:
    """Columns and positions of a cache."""

    start: int  # columns in use before the current pass
    stop: int  # columns in use after it
    positions: Tensor | None  # int [B, C], -1: padding; None: position = column
    lengths_before: Tensor | None  # int [B, 1]: tokens of each row before the pass


class Columns:
    """Storage with a column for each token, of the shape [B, K, C, E]."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors; tokens are along dimension 2."""
        return {"keys": self.keys, "values": self.values}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def used(self, length: int) -> dict[str, Tensor]:
        """Returns the slices of the tensors that are in use when the cache has `length` columns."""
        return {name: tensor[:, :, :length] for name, tensor in self.tensors().items()}

    def append(self, cache: CacheState, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values, [B, K, T, E]; returns all visible ones, [B, K, S, E]."""
        self.keys[:, :, cache.start : cache.stop] = keys
        self.values[:, :, cache.start : cache.stop] = values
        return self.keys[:, :, : cache.stop], self.values[:, :, : cache.stop]

    def key_positions(self, cache: CacheState) -> Tensor:
        """Returns positions of the keys of `append`, int [B or 1, S]; negative: no token."""
        if cache.positions is None:
            return torch.arange(cache.stop, device=self.keys.device)[None]
        return cache.positions[:, : cache.stop]

    def is_dense(self, cache: CacheState) -> bool:
        """True if the keys of `append` are in order and end with the new tokens."""
        return True

    def reorder(self, rows: Tensor, length: int) -> None:
        """Replaces row b by row `rows[b]` in place; `length` columns are in use."""
        for tensor in self.used(length).values():
            tensor.copy_(tensor[rows])

    def select(self, rows: Tensor, length: int) -> None:
        """Replaces the rows by `rows`, in new memory; `length` columns are in use."""
        for name, used in self.used(length).items():
            tensor = getattr(self, name)
            selected = tensor.new_zeros(len(rows), *tensor.shape[1:])
            selected[:, :, : used.shape[2]] = used[rows]
            setattr(self, name, selected)

    def insert(self, rows: Tensor, storage: Columns, length: int) -> None:
        """Replaces `rows`, int [n], by the n rows of another storage with `length` columns."""
        theirs = storage.used(length)
        for name, tensor in self.tensors().items():
            tensor[:, :, : theirs[name].shape[2]].index_copy_(0, rows, theirs[name])

    def compact(self, columns: Tensor) -> None:
        """Moves columns to the front; `columns`, int [B, any]: those that each row retains."""
        for tensor in self.tensors().values():
            index = columns[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            tensor[:, :, : columns.shape[1]] = tensor.gather(2, index)


class Int8Columns(Columns):
    """Int8 storage with a scale for each key and value vector.

    The largest magnitude of a vector becomes 127; no value changes by more than 1/254 of it.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(shape, device, torch.int8)
        self.dtype = dtype
        self.key_scales = torch.zeros(*shape[:3], 1, device=device)
        self.value_scales = torch.zeros(*shape[:3], 1, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the scales too, float32 [B, K, C, 1]."""
        return {
            **super().tensors(),
            "key_scales": self.key_scales,
            "value_scales": self.value_scales,
        }

    def append(self, cache: CacheState, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Columns.append`; the returned tensors have the cache's type."""
        new, all_ = slice(cache.start, cache.stop), slice(cache.stop)
        for x, stored, scales in (
            (keys, self.keys, self.key_scales),
            (values, self.values, self.value_scales),
        ):
            scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
            stored[:, :, new] = (x.float() / scale).round().to(torch.int8)
            scales[:, :, new] = scale
        return (
            (self.keys[:, :, all_] * self.key_scales[:, :, all_]).to(self.dtype),
            (self.values[:, :, all_] * self.value_scales[:, :, all_]).to(self.dtype),
        )


class Ring(Columns):
    """Ring buffer of the last W = `window` tokens of each row: position p is in slot p mod W."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, window: int) -> None:
        super().__init__((shape[0], shape[1], window, shape[3]), device, dtype)
        self.window = window

    def append(self, cache: CacheState, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Columns.append`; with several new tokens the earlier content is returned too."""
        if cache.positions is None and keys.shape[2] == 1:
            slot = cache.start % self.window
            self.keys[:, :, slot : slot + 1] = keys
            self.values[:, :, slot : slot + 1] = values
            used = min(cache.stop, self.window)
            return self.keys[:, :, :used], self.values[:, :, :used]
        if cache.start == 0:
            visible = keys, values
        else:
            visible = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self._write_slots(cache, keys, values)
        return visible

    def key_positions(self, cache: CacheState) -> Tensor:
        """See `Columns.key_positions`."""
        slots = torch.arange(self.window, device=self.keys.device)[None]
        if cache.positions is None:
            new = torch.arange(cache.start, cache.stop, device=self.keys.device)[None]
            if cache.stop - cache.start == 1:
                return self._slot_positions(slots, new)[:, : min(cache.stop, self.window)]
            last = new[:, :1] - 1
        else:
            assert cache.lengths_before is not None
            new, last = cache.positions[:, cache.start : cache.stop], cache.lengths_before - 1
        return new if cache.start == 0 else torch.cat((self._slot_positions(slots, last), new), 1)

    def is_dense(self, cache: CacheState) -> bool:
        """See `Columns.is_dense`."""
        # One query sees the whole ring; a first pass returns keys that are not from the ring.
        return cache.stop - cache.start == 1 or cache.start == 0

    def used(self, length: int) -> dict[str, Tensor]:
        """See `Columns.used`."""
        return super().used(min(length, self.window))

    def compact(self, columns: Tensor) -> None:
        """Does nothing: the slot of a token depends on its position only."""

    def _slot_positions(self, slots: Tensor, last_positions: Tensor) -> Tensor:
        """Returns the position in each slot of rows with these last positions; negative: none."""
        return last_positions - (last_positions - slots) % self.window

    def _write_slots(self, cache: CacheState, keys: Tensor, values: Tensor) -> None:
        count = min(keys.shape[2], self.window)
        if cache.positions is None:
            slots = torch.arange(cache.stop - count, cache.stop, device=keys.device) % self.window
            self.keys.index_copy_(2, slots, keys[:, :, -count:].to(self.keys.dtype))
            self.values.index_copy_(2, slots, values[:, :, -count:].to(self.values.dtype))
            return
        # Rows have different numbers of tokens: each slot gathers its own column.
        assert cache.lengths_before is not None
        if not keys.shape[2]:
            return
        real = cache.positions[:, cache.start : cache.stop] >= 0  # [B, T]
        columns = (~real).to(torch.int8).argsort(dim=1, stable=True)  # real tokens first
        slots = torch.arange(self.window, device=keys.device)[None]
        last = cache.lengths_before + real.sum(1, keepdim=True) - 1
        # [B, W]: index among the row's new tokens; negative: the slot keeps its token
        new_index = self._slot_positions(slots, last) - cache.lengths_before
        column = columns.gather(1, new_index.clamp(0, real.shape[1] - 1))[:, None, :, None]
        is_new = (new_index >= 0)[:, None, :, None]
        for stored, new in ((self.keys, keys), (self.values, values)):
            index = column.expand(-1, stored.shape[1], -1, stored.shape[3])
            stored.copy_(torch.where(is_new, new.to(stored.dtype).gather(2, index), stored))
