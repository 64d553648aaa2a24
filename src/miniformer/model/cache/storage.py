"""How one layer's keys and values lie in memory. `KVCache` decides where tokens go.

Letters: B batch, T new tokens, S tokens so far, C capacity, K key-value heads, E head width, W
    sliding window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from miniformer.model.cache.kv_cache import KVCache

Shape = tuple[int, int, int, int]


class Columns:
    """A column for each token.

    Args:
        shape: [B, K, C, E].
        device: where they live.
        dtype: type of keys and values.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, tokens along dimension 2."""
        return {"keys": self.keys, "values": self.values}

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def used(self, length: int) -> dict[str, Tensor]:
        """What of it holds tokens after `length` columns."""
        return {name: tensor[:, :, :length] for name, tensor in self.tensors().items()}

    def append(self, cache: KVCache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values, [B, K, T, E]; returns all to be seen, [B, K, S, E]."""
        self.keys[:, :, cache.start : cache.stop] = keys
        self.values[:, :, cache.start : cache.stop] = values
        return self.keys[:, :, : cache.stop], self.values[:, :, : cache.stop]

    def key_positions(self, cache: KVCache) -> Tensor:
        """Positions of what `append` returns, int [B or 1, S]; negative: no token there."""
        if cache.positions is None:
            return torch.arange(cache.stop, device=self.keys.device)[None]
        return cache.positions[:, : cache.stop]

    def is_dense(self, cache: KVCache) -> bool:
        """Whether what `append` returns ends with the new tokens, in their order."""
        return True

    def reorder(self, rows: Tensor, length: int) -> None:
        """Row b becomes what row `rows[b]` was; `length` columns are in use."""
        for tensor in self.used(length).values():
            tensor.copy_(tensor[rows])

    def select(self, rows: Tensor, length: int) -> None:
        """The same in new memory, for another number of rows."""
        for name, used in self.used(length).items():
            whole = getattr(self, name)
            chosen = whole.new_zeros(len(rows), *whole.shape[1:])
            chosen[:, :, : used.shape[2]] = used[rows]
            setattr(self, name, chosen)


class Int8Columns(Columns):
    """A byte for each value, with a scale for each key and value vector.

    A vector's largest magnitude becomes 127, so no value moves by more than 1/254 of it.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(shape, device, torch.int8)
        self.dtype = dtype
        self.key_scales = torch.zeros(*shape[:3], 1, device=device)
        self.value_scales = torch.zeros(*shape[:3], 1, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Scales, too: float32 [B, K, C, 1]."""
        return {
            **super().tensors(),
            "key_scales": self.key_scales,
            "value_scales": self.value_scales,
        }

    def append(self, cache: KVCache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Columns.append`; what it returns is of the cache's own type again."""
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
    """The last W tokens of each row only: position p lies in slot p mod W.

    Args:
        shape, device, dtype: see `Columns`.
        window: number W of slots.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, window: int) -> None:
        super().__init__((shape[0], shape[1], window, shape[3]), device, dtype)
        self.window = window

    def append(self, cache: KVCache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Columns.append`; several new tokens see what was in the ring before them, too."""
        if cache.positions is None and keys.shape[2] == 1:
            slot = cache.start % self.window
            self.keys[:, :, slot : slot + 1] = keys
            self.values[:, :, slot : slot + 1] = values
            used = min(cache.stop, self.window)
            return self.keys[:, :, :used], self.values[:, :, :used]
        if cache.start == 0:
            seen = keys, values
        else:
            seen = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self._write_slots(cache, keys, values)
        return seen

    def key_positions(self, cache: KVCache) -> Tensor:
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

    def is_dense(self, cache: KVCache) -> bool:
        """See `Columns.in_order`."""
        # One query sees all that is left; what a first pass returns was never in the ring.
        return cache.stop - cache.start == 1 or cache.start == 0

    def used(self, length: int) -> dict[str, Tensor]:
        """See `Columns.used`."""
        return super().used(min(length, self.window))

    def _slot_positions(self, slots: Tensor, last_positions: Tensor) -> Tensor:
        """Position in each slot of a row whose last position is `last`; negative: none yet."""
        return last_positions - (last_positions - slots) % self.window

    def _write_slots(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        kept = min(keys.shape[2], self.window)
        if cache.positions is None:
            slots = torch.arange(cache.stop - kept, cache.stop, device=keys.device) % self.window
            self.keys.index_copy_(2, slots, keys[:, :, -kept:].to(self.keys.dtype))
            self.values.index_copy_(2, slots, values[:, :, -kept:].to(self.values.dtype))
            return
        # Rows have taken different numbers of tokens: each slot looks up its own.
        assert cache.lengths_before is not None
        if not keys.shape[2]:
            return
        real = cache.positions[:, cache.start : cache.stop] >= 0  # [B, T]
        columns = (~real).to(torch.int8).argsort(dim=1, stable=True)  # real ones first
        slots = torch.arange(self.window, device=keys.device)[None]
        last = cache.lengths_before + real.sum(1, keepdim=True) - 1
        nth = (
            self._slot_positions(slots, last) - cache.lengths_before
        )  # [B, W]: the row's nth new token
        column = columns.gather(1, nth.clamp(0, real.shape[1] - 1))[:, None, :, None]
        fresh = (nth >= 0)[:, None, :, None]
        for stored, new in ((self.keys, keys), (self.values, values)):
            index = column.expand(-1, stored.shape[1], -1, stored.shape[3])
            stored.copy_(torch.where(fresh, new.to(stored.dtype).gather(2, index), stored))
