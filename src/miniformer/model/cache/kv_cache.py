"""Key-value cache. It computes positions: callers only pass which of the new tokens are real.

A forward pass first calls `extend`, which reserves columns and returns positions, then
`visibility`; each attention layer then calls `append`. Rows of a batch may hold padding anywhere:
padded columns are never attended to and take no position. `trim` truncates rows to different
lengths, `reorder` and `select` reindex them.

Letters: B batch, T new tokens, S tokens so far, C capacity, K key-value heads, E head width, W
    sliding window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from miniformer.config.model_config import CACHE_KINDS
from miniformer.model.cache.storage import CacheState, Columns, Int8Columns, Ring
from miniformer.model.masks import Visibility


class KVCache(CacheState):
    """Keys and values of earlier tokens, in preallocated memory.

    Args:
        windows: sliding window of each layer; None: it has none.
        batch_size: number B of rows.
        capacity: number C of columns: the tokens of a row, its padding, and the columns trimmed
            from it that another row still uses.
        kv_heads: number K of key-value heads.
        head_dim: width E of a head.
        device, dtype: of keys and values.
        kind: window: layers with a window store its W tokens only; full: all layers store all
            tokens; int8: like full, with a byte for each value and a scale for each vector.

    Attributes:
        final_lengths: int [B, 1], length of each row when decoding is done; used by rotary scaling
            that depends on the length. The capacity by default; set it before the first pass if
            the length is known.
    """

    def __init__(
        self,
        *,
        windows: Sequence[int | None],
        batch_size: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        kind: str = "window",
    ) -> None:
        if kind not in CACHE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(CACHE_KINDS)}, not {kind!r}")
        self.batch_size, self.capacity, self.kind, self.device = batch_size, capacity, kind, device
        self.dtype = dtype
        self.start = self.stop = 0
        self.in_pass = False  # between `extend` and `end_pass`
        self.positions = self.lengths_before = None
        self.final_lengths = torch.full((batch_size, 1), capacity, device=device)
        self.cross_kv: list[tuple[Tensor, Tensor]] | None = None  # of the source, by layer
        shape = (batch_size, kv_heads, capacity, head_dim)
        self.layers: list[Columns] = []
        for window in windows:
            if kind == "int8":
                self.layers.append(Int8Columns(shape, device, dtype))
            elif kind == "window" and window is not None and window < capacity:
                self.layers.append(Ring(shape, device, dtype, window))
            else:
                self.layers.append(Columns(shape, device, dtype))

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
        cross = sum(keys.nbytes + values.nbytes for keys, values in self.cross_kv or [])
        return cross + sum(layer.nbytes for layer in self.layers)

    def extend(self, attention_mask: Tensor | None, num_new: int) -> Tensor:
        """Begins a pass with T = `num_new` tokens.

        Args:
            attention_mask: bool [B, T], True = a real token; None: all are.
            num_new: number of columns to add.

        Returns:
            Positions, int [B, T] ([1, T] where all rows are equal).

        Raises:
            ValueError: the cache is full.
        """
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
        """Ends the pass that `extend` began: every layer has appended its keys and values."""
        self.in_pass = False

    def visibility(self, layer: int, positions: Tensor, window: int | None) -> Visibility:
        """Returns the visibility of a layer's keys, in the order of `append`, for the new queries.

        `positions` are those of `extend`, `window` is the sliding window of the layer.
        """
        keys = self.layers[layer].key_positions(self)
        is_dense = self.positions is None and self.layers[layer].is_dense(self)
        return Visibility(True, window, positions, keys, is_dense=is_dense)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values, [B, K, T, E]; returns all, [B, K, S, E]."""
        return self.layers[layer].append(self, keys, values)

    def source_kv(
        self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Returns a decoder layer's keys and values of the source, two of [B, K, S, E].

        Args:
            layer: index of the layer; the layers call in order.
            project: computes them; called in the first pass only.
        """
        if self.cross_kv is None:
            self.cross_kv = []
        if layer == len(self.cross_kv):
            keys, values = project()
            # In the cache's type, also under autocast.
            self.cross_kv.append((keys.to(self.dtype), values.to(self.dtype)))
        return self.cross_kv[layer]

    def reorder(self, rows: Tensor, *, same_source: bool = False) -> None:
        """Replaces row b by row `rows[b]` in place, as beam search needs.

        Args:
            rows: int [B].
            same_source: each row is replaced by a row with the same source.

        Raises:
            ValueError: `rows` has another shape.
        """
        if rows.shape != (self.batch_size,):
            expected = f"int [{self.batch_size}], one for each row of the cache"
            raise ValueError(f"rows must be {expected}, not {list(rows.shape)}")
        for layer in self.layers:
            layer.reorder(rows, self.length)
        for tensor in (self.final_lengths, self.positions):
            if tensor is not None:
                tensor.copy_(tensor[rows])
        self._reindex_rows(rows, None if same_source else rows)

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Keeps these rows only, in this order; rows may repeat.

        Args:
            rows: int [any].
            sources: indices of a decoder's sources, where rows share them; None: `rows`.
        """
        for layer in self.layers:
            layer.select(rows, self.length)
        self.batch_size, self.final_lengths = len(rows), self.final_lengths[rows]
        if self.positions is not None:
            self.positions = self.positions[rows]
        self._reindex_rows(rows, rows if sources is None else sources)

    def trim(self, lengths: int | Tensor) -> None:
        """Truncates each row to its first tokens, as after a rejected draft.

        An empty cache drops its source, too, and can take another.

        Args:
            lengths: tokens to retain: one number, or int [B], one for each row.

        Raises:
            ValueError: a sliding window has overwritten the tokens, or a length is below 0.
        """
        limits = torch.as_tensor(lengths, device=self.device).reshape(-1, 1)
        if (limits < 0).any():
            raise ValueError(f"lengths must be at least 0, not {int(limits.min())}")
        self.stop, self.in_pass = self.length, False
        for layer in self.layers:
            if isinstance(layer, Ring) and bool((self.lengths > layer.window).any()):
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

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the content as contiguous tensors, for safetensors; see `load_state_dict`."""
        state = {"length": torch.tensor(self.length), "spans": self.final_lengths}
        if self.positions is not None:
            state["positions"] = self.positions[:, : self.length]
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.used(self.length).items():
                state[_state_key(index, layer, name)] = tensor
        for index, (keys, values) in enumerate(self.cross_kv or []):
            state[f"cross.{index}.keys"], state[f"cross.{index}.values"] = keys, values
        contiguous = torch.contiguous_format
        return {name: tensor.clone(memory_format=contiguous) for name, tensor in state.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Loads the `state_dict` of a cache of the same kind, model and number of rows.

        Raises:
            ValueError: the state does not fit.
        """
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
        self.cross_kv = None
        if "cross.0.keys" in state_dict:
            self.cross_kv = [
                (state_dict[f"cross.{index}.keys"], state_dict[f"cross.{index}.values"])
                for index in range(len(self.layers))
            ]

    def _reindex_rows(self, rows: Tensor, sources: Tensor | None) -> None:
        """Reindexes the tensors outside of layers; sources: None: they stay."""
        if self.lengths_before is not None:
            self.lengths_before = self.lengths_before[rows]
        if sources is not None and self.cross_kv is not None:
            self.cross_kv = [(keys[sources], values[sources]) for keys, values in self.cross_kv]

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
