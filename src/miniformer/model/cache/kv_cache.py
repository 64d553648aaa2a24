"""Key-value caches with a column for each token.

They compute positions: callers only pass which of the new tokens are real. Rows of a batch may hold
padding anywhere: padded columns are never attended to and take no position. `trim` truncates rows
to different lengths, `reorder`, `select` and `insert` reindex them. `protocol.py` has the contract
of each method.

Letters: B batch, T new tokens, S tokens so far, C capacity, K key-value heads, E head width, W
    sliding window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.model.cache.protocol import Cache, CacheSpec
from miniformer.model.cache.source import SourceCache
from miniformer.model.cache.storage import CacheState, Columns, Int8Columns, Ring, Shape
from miniformer.model.masks import Visibility


class KVCache(SourceCache, CacheState):
    """Keys and values of earlier tokens, in preallocated memory; all layers store all tokens.

    A subclass stores layers in another form by overriding `make_layer`.

    Args:
        spec: sizes and types.

    Attributes:
        positions: int [B, C], -1: padding; None: the position of a token is its column.
        final_lengths: see `PassCache`.
    """

    def __init__(self, spec: CacheSpec) -> None:
        self.batch_size, self.capacity = spec.batch_size, spec.capacity
        self.device, self.dtype = spec.device, spec.dtype
        self.start = self.stop = 0
        self.in_pass = False  # between `extend` and `end_pass`
        self.positions = self.lengths_before = None
        self.final_lengths = torch.full((self.batch_size, 1), self.capacity, device=self.device)
        self.layers = [
            self.make_layer((self.batch_size, heads, self.capacity, spec.head_dim), window)
            for heads, window in zip(spec.kv_heads, spec.windows, strict=True)
        ]

    def make_layer(self, shape: Shape, window: int | None) -> Columns:
        """Makes the storage of a layer for keys and values of this shape, [B, K, C, E].

        `window` is the sliding window of the layer, or None.
        """
        return Columns(shape, self.device, self.dtype)

    @property
    def length(self) -> int:
        """Columns in use; without padding, the tokens of each row."""
        return self.start if self.in_pass else self.stop

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int [B]."""
        if self.positions is None:
            return torch.full((self.batch_size,), self.length, device=self.device)
        return (self.positions[:, : self.length] >= 0).sum(1)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, including those of the source."""
        return self.source_nbytes + sum(layer.nbytes for layer in self.layers)

    def extend(self, attention_mask: Tensor | None, num_new: int) -> Tensor:
        """Implements `PassCache.extend`."""
        self._truncate(self.length)  # discards the columns of a pass that failed
        self._check_capacity(self.stop + num_new)
        if attention_mask is not None and self.positions is None and not attention_mask.all():
            self.make_positions()
        self.start, self.stop, self.in_pass = self.stop, self.stop + num_new, True
        if self.positions is None:
            return torch.arange(self.start, self.stop, device=self.device)[None]
        real = attention_mask
        if real is None:
            real = torch.ones(self.batch_size, num_new, dtype=torch.bool, device=self.device)
        self.lengths_before = (self.positions[:, : self.start] >= 0).sum(1, keepdim=True)
        positions = self.lengths_before + real.cumsum(1) - 1
        self.positions[:, self.start : self.stop] = positions.masked_fill(~real, -1)
        return positions.clamp_min(0)

    def reserve(self, num_new: int) -> None:
        """Adds T = `num_new` columns whose keys, values and positions the caller writes.

        Raises:
            ValueError: the cache is full.
        """
        self.stop, self.in_pass = self.length, False
        self._check_capacity(self.stop + num_new)
        self.start, self.stop = self.stop, self.stop + num_new

    def make_positions(self) -> Tensor:
        """Returns `positions`, made if it is None."""
        if self.positions is None:
            shape = (self.batch_size, self.capacity)
            self.positions = torch.full(shape, -1, dtype=torch.long, device=self.device)
            self.positions[:, : self.stop] = torch.arange(self.stop, device=self.device)
        return self.positions

    def end_pass(self) -> None:
        """Implements `PassCache.end_pass`."""
        self.in_pass = False

    def visibility(self, layer: int, positions: Tensor, window: int | None) -> Visibility:
        """Implements `PassCache.visibility`."""
        keys = self.layers[layer].key_positions(self)
        is_dense = self.positions is None and self.layers[layer].is_dense(self)
        return Visibility(True, window, positions, keys, is_dense=is_dense)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Implements `PassCache.append`."""
        return self.layers[layer].append(self, keys, values)

    def reorder(self, rows: Tensor, *, same_source: bool = False) -> None:
        """Implements `Cache.reorder`."""
        if rows.shape != (self.batch_size,):
            expected = f"int [{self.batch_size}], one for each row of the cache"
            raise ValueError(f"rows must be {expected}, not {list(rows.shape)}")
        if not same_source and self.cross_kv and len(self.cross_kv[0][0]) != self.batch_size:
            raise ValueError("rows share their sources; reorder them with same_source=True")
        for layer in self.layers:
            layer.reorder(rows, self.length)
        for tensor in (self.final_lengths, self.positions):
            if tensor is not None:
                tensor.copy_(tensor[rows])
        self._reindex_rows(rows, None if same_source else rows)

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Implements `Cache.select`."""
        for layer in self.layers:
            layer.select(rows, self.length)
        self.batch_size, self.final_lengths = len(rows), self.final_lengths[rows]
        if self.positions is not None:
            self.positions = self.positions[rows]
        self._reindex_rows(rows, rows if sources is None else sources)

    def trim(self, lengths: int | Tensor) -> None:
        """Implements `Cache.trim`."""
        limits = torch.as_tensor(lengths, device=self.device).reshape(-1, 1)
        if (limits < 0).any():
            raise ValueError(f"lengths must be at least 0, not {int(limits.min())}")
        self.stop, self.in_pass = self.length, False
        before = self.lengths[:, None]
        is_cut = (limits > 0) & (limits < before)
        for layer in self.layers:
            if isinstance(layer, Ring) and bool((is_cut & (before > layer.window)).any()):
                raise ValueError(
                    f"a cache with a sliding window of {layer.window} has overwritten earlier "
                    "tokens; make it with kind='full' to trim it"
                )
        if isinstance(lengths, int) and self.positions is None:
            self._truncate(min(lengths, self.stop))
            return
        positions = self.make_positions()
        positions[positions >= limits] = -1
        used = (positions[:, : self.stop] >= 0).any(0).nonzero()
        self._truncate(int(used.max()) + 1 if len(used) else 0)

    def insert(self, rows: Tensor, cache: Cache) -> None:
        """Implements `Cache.insert`."""
        problem = self._insertion_problem(rows, cache)
        if problem is not None:
            raise ValueError(f"the rows of another cache cannot be inserted: {problem}")
        assert isinstance(cache, KVCache)
        self.insert_sources(rows, cache)
        length, self.stop, self.in_pass = cache.length, self.length, False
        for layer, theirs in zip(self.layers, cache.layers, strict=True):
            layer.insert(rows, theirs, length)
        positions = self.make_positions()
        positions[:, self.stop :] = positions[rows] = -1
        positions[rows, :length] = (
            torch.arange(length, device=self.device)
            if cache.positions is None
            else cache.positions[:, :length]
        )
        self.stop = max(self.stop, length)
        self.final_lengths[rows] = cache.final_lengths

    def compact(self) -> None:
        """Implements `Cache.compact`."""
        self.stop, self.in_pass = self.length, False
        if self.positions is None:
            return
        used = self.positions[:, : self.stop]
        columns = (used < 0).to(torch.int8).argsort(dim=1, stable=True)  # tokens first
        length = int((used >= 0).sum(1).amax()) if self.batch_size else 0
        columns = columns[:, :length]
        for layer in self.layers:
            layer.compact(columns)
        used[:, :length], used[:, length:] = used.gather(1, columns), -1
        self._truncate(length)

    def state_dict(self) -> dict[str, Tensor]:
        """Implements `Cache.state_dict`."""
        state = {"length": torch.tensor(self.length), "spans": self.final_lengths}
        if self.positions is not None:
            state["positions"] = self.positions[:, : self.length]
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.used(self.length).items():
                state[_state_key(index, layer, name)] = tensor
        state |= self.source_state()
        contiguous = torch.contiguous_format
        return {name: tensor.clone(memory_format=contiguous) for name, tensor in state.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Implements `Cache.load_state_dict`."""
        length = int(state_dict["length"])
        self._check_capacity(length)
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.used(length).items():
                stored = state_dict.get(_state_key(index, layer, name))
                if stored is None or stored.shape != tensor.shape:
                    shape = "missing" if stored is None else list(stored.shape)
                    raise ValueError(
                        f"{name} of layer {index} in the state: {shape}, in this cache: "
                        f"{list(tensor.shape)}; the state is of another kind of cache or model"
                    )
                tensor.copy_(stored)
        self.start = self.stop = length
        self.in_pass = False
        self.final_lengths = state_dict["spans"].to(self.device)
        self.positions = None
        if "positions" in state_dict:
            self.make_positions()[:, :length] = state_dict["positions"]
        self.load_source_state(state_dict)

    def _insertion_problem(self, rows: Tensor, cache: Cache) -> str | None:
        """Reason why the rows of a cache cannot be inserted; None: they can."""
        if type(cache) is not type(self):
            return f"it is a {type(cache).__name__}, not a {type(self).__name__}"
        assert isinstance(cache, KVCache)
        if rows.shape != (cache.batch_size,):
            return f"rows must be int [{cache.batch_size}], not {list(rows.shape)}"
        if cache.capacity != self.capacity:
            return f"its capacity is {cache.capacity}, not {self.capacity}"
        return None

    def _reindex_rows(self, rows: Tensor, sources: Tensor | None) -> None:
        """Reindexes the tensors outside of layers; sources: None: they stay."""
        if self.lengths_before is not None:
            self.lengths_before = self.lengths_before[rows]
        if sources is not None:
            self.select_sources(sources)

    def _truncate(self, columns: int) -> None:
        self.stop = columns
        if columns == 0:
            self.cross_kv = None

    def _check_capacity(self, tokens: int) -> None:
        if tokens > self.capacity:
            unit = "tokens" if self.positions is None else "columns of tokens and padding"
            raise ValueError(
                f"{tokens} {unit} do not fit a cache of capacity {self.capacity}; make a larger one"
            )


def _state_key(index: int, layer: Columns, name: str) -> str:
    # The key names the storage: tensors of one shape have another layout in a ring.
    return f"{index}.{type(layer).__name__.lower()}.{name}"


class WindowCache(KVCache):
    """Cache of which layers with a sliding window store its W tokens only."""

    def make_layer(self, shape: Shape, window: int | None) -> Columns:
        """See `KVCache.make_layer`."""
        if window is not None and window < self.capacity:
            return Ring(shape, self.device, self.dtype, window)
        return super().make_layer(shape, window)


class Int8Cache(KVCache):
    """Cache with a byte for each value and a scale for each vector."""

    def make_layer(self, shape: Shape, window: int | None) -> Columns:
        """See `KVCache.make_layer`."""
        return Int8Columns(shape, self.device, self.dtype)
