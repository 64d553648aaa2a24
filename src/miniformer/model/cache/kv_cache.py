"""The key-value cache. It owns position: callers only say which of the new tokens are real.

A forward pass first calls `extend`, which places its tokens and gives their positions; then
`visibility`, for who sees whom; each attention layer then calls `append`. Rows of a batch may hold
padding anywhere: padded columns are never attended to and take no position. Rows may also be cut
back to different lengths (`trim`) and exchanged (`reorder`).

Letters: B batch, T new tokens, S tokens so far, C capacity, K key-value heads, E head width, W
    sliding window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from miniformer.model.cache.storage import Columns, Int8Columns, Ring
from miniformer.model.masks import Visibility

CACHE_KINDS = ("window", "full", "int8")


class KVCache:
    """Keys and values of earlier tokens, in memory taken once.

    Args:
        windows: sliding window of each layer; None: it has none.
        batch_size: number B of rows.
        capacity: number C of columns, the most that a row can hold: tokens, its padding, and what
            is cut from it while another row keeps as much.
        kv_heads: number K of key-value heads.
        head_dim: width E of a head.
        device: where keys and values live.
        dtype: their type.
        kind: window: layers with a window keep its W tokens only; full: all layers keep all; int8:
            so do they, in a byte for each value and a scale for each vector.

    Attributes:
        spans: int [B, 1], tokens that each row will have come to hold in the end. What depends on
            the length of a text, as dynamic rotary scaling does, goes by it from the first pass
            on. At first the capacity; set it before that pass where you know better.
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
        self.start = self.stop = 0  # columns in use before and after the pass under way
        self.in_pass = False  # whether a pass has begun and not ended
        self.positions: Tensor | None = None  # int [B, C], -1: padding; None: position = column
        self.lengths_before: Tensor | None = None  # int [B, 1]: tokens of each row before the pass
        self.final_lengths = torch.full((batch_size, 1), capacity, device=device)
        self.cross_kv: list[tuple[Tensor, Tensor]] | None = None  # of the source, for each layer
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
        """Columns in use; without padding, tokens of each row."""
        return self.start if self.in_pass else self.stop

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int [B]."""
        if self.positions is None:
            return torch.full((self.batch_size,), self.length, device=self.device)
        return (self.positions[:, : self.length] >= 0).sum(1)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, the source's too."""
        cross = sum(keys.nbytes + values.nbytes for keys, values in self.cross_kv or [])
        return cross + sum(layer.nbytes for layer in self.layers)

    def extend(self, attention_mask: Tensor | None, num_new: int) -> Tensor:
        """Makes room for T = `new` tokens.

        Args:
            attention_mask: bool [B, T], True = a real token; None: all are.
            new: number of columns to add.

        Returns:
            Positions, int [B, T] ([1, T] where all rows are alike).

        Raises:
            ValueError: the cache is full.
        """
        self._truncate(self.length)  # a pass that failed half-way leaves nothing
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
        counts = self.lengths_before + real.cumsum(1) - 1
        self.positions[:, self.start : self.stop] = counts.masked_fill(~real, -1)
        return counts.clamp_min(0)

    def reserve(self, num_new: int) -> None:
        """Counts T = `new` columns that somebody else fills, positions and all.

        Raises:
            ValueError: the cache is full.
        """
        self.stop, self.in_pass = self.length, False
        self._check_capacity(self.stop + num_new)
        self.start, self.stop = self.stop, self.stop + num_new

    def make_positions(self) -> None:
        """Notes the position of each column, even where all are real and it is their number."""
        if self.positions is not None:
            return
        shape = (self.batch_size, self.capacity)
        self.positions = torch.full(shape, -1, dtype=torch.long, device=self.device)
        self.positions[:, : self.stop] = torch.arange(self.stop, device=self.device)

    def end_pass(self) -> None:
        """Says that every layer has its keys and values of the pass that `extend` began."""
        self.in_pass = False

    def visibility(self, layer: int, positions: Tensor, window: int | None) -> Visibility:
        """Which keys, in the order in which `append` gives them, the new queries see.

        Args:
            layer: the layer that asks.
            positions: from `extend`.
            window: the layer's sliding window.
        """
        keys = self.layers[layer].key_positions(self)
        in_order = self.positions is None and self.layers[layer].is_dense(self)
        return Visibility(True, window, positions, keys, is_dense=in_order)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values, [B, K, T, E]; returns all, [B, K, S, E]."""
        return self.layers[layer].append(self, keys, values)

    def source_kv(
        self, layer: int, project: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A decoder layer's keys and values of the source, two of [B, K, S, E].

        Args:
            layer: the layer that asks; the layers ask in order.
            project: makes them; called in the first pass only.
        """
        if self.cross_kv is None:
            self.cross_kv = []
        if layer == len(self.cross_kv):
            keys, values = project()
            # Of the cache's type, whatever autocast makes of products.
            self.cross_kv.append((keys.to(self.dtype), values.to(self.dtype)))
        return self.cross_kv[layer]

    def reorder(self, rows: Tensor, *, same_source: bool = False) -> None:
        """Row b becomes what row `rows[b]` was, as beams do, in the memory that is there.

        Args:
            rows: int [B].
            same_source: whether both are always of one source, which then can stay as it is.

        Raises:
            ValueError: there is not one for each row of the cache.
        """
        if rows.shape != (self.batch_size,):
            wanted = f"int [{self.batch_size}], one for each row of the cache"
            raise ValueError(f"rows must be {wanted}, not {list(rows.shape)}")
        for layer in self.layers:
            layer.reorder(rows, self.length)
        for kept in (self.final_lengths, self.positions):
            if kept is not None:
                kept.copy_(kept[rows])
        self._reindex_rows(rows, None if same_source else rows)

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Goes on with these rows: fewer, as when some have ended, or some of them several times.

        Args:
            rows: int [any].
            sources: the same of a decoder's sources, where rows share them; None: as `rows`.
        """
        for layer in self.layers:
            layer.select(rows, self.length)
        self.batch_size, self.final_lengths = len(rows), self.final_lengths[rows]
        if self.positions is not None:
            self.positions = self.positions[rows]
        self._reindex_rows(rows, rows if sources is None else sources)

    def trim(self, lengths: int | Tensor) -> None:
        """Forgets all but the first tokens of each row, as after a wrong guess.

        A cache that has no token left forgets its source, too, and can take another.

        Args:
            lengths: how many to keep: one number, or int [B], one for each row.

        Raises:
            ValueError: a ring no longer has them, or a length is below 0.
        """
        kept = torch.as_tensor(lengths, device=self.device).reshape(-1, 1)
        if (kept < 0).any():
            raise ValueError(f"lengths must be at least 0, not {int(kept.min())}")
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
        if self.positions is None:
            self.make_positions()
        assert self.positions is not None
        self.positions[self.positions >= kept] = -1
        used = (self.positions[:, : self.stop] >= 0).any(0).nonzero()
        self._truncate(int(used.max()) + 1 if len(used) else 0)

    def state_dict(self) -> dict[str, Tensor]:
        """All that is stored, as tensors that safetensors can write; see `load_state`."""
        state = {"length": torch.tensor(self.length), "spans": self.final_lengths}
        if self.positions is not None:
            state["positions"] = self.positions[:, : self.length]
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.used(self.length).items():
                state[_state_key(index, layer, name)] = tensor
        for index, (keys, values) in enumerate(self.cross_kv or []):
            state[f"cross.{index}.keys"], state[f"cross.{index}.values"] = keys, values
        copied = torch.contiguous_format
        return {name: tensor.clone(memory_format=copied) for name, tensor in state.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Takes over what `state` gave, from a cache of the same kind, model and rows.

        Raises:
            ValueError: it does not fit.
        """
        length = int(state_dict["length"])
        self._check_capacity(length)
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.used(length).items():
                stored = state_dict.get(_state_key(index, layer, name))
                if stored is None or stored.shape != tensor.shape:
                    found = "none" if stored is None else list(stored.shape)
                    raise ValueError(
                        f"the state's {name} of layer {index} are {found}, this cache's "
                        f"{list(tensor.shape)}; it is of another kind of cache or model"
                    )
                tensor.copy_(stored)
        self.start = self.stop = length
        self.in_pass = False
        self.final_lengths = state_dict["spans"].to(self.device)
        self.positions = None
        if "positions" in state_dict:
            self.make_positions()
            assert self.positions is not None
            self.positions[:, :length] = state_dict["positions"]
        self.cross_kv = None
        if "cross.0.keys" in state_dict:
            self.cross_kv = [
                (state_dict[f"cross.{index}.keys"], state_dict[f"cross.{index}.values"])
                for index in range(len(self.layers))
            ]

    def _reindex_rows(self, rows: Tensor, sources: Tensor | None) -> None:
        """What `reorder` and `select` do alike; sources: None: they stay."""
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
            what = "tokens" if self.positions is None else "columns of tokens and padding"
            raise ValueError(
                f"{tokens} {what} do not fit a cache of capacity {self.capacity}; make a larger one"
            )


def _state_key(index: int, layer: Columns, name: str) -> str:
    # The same shape lies otherwise in a ring than in columns, so a state says which it is of.
    return f"{index}.{type(layer).__name__.lower()}.{name}"
