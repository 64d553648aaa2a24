"""Interface of key-value caches.

A cache is made by a component of the registry kind `cache` from a `CacheSpec`. A pass of the model
uses the methods of `PassCache`, in this order, and decoding those of `Cache` between passes:

    extend       columns and positions of the new tokens
    visibility   which keys the new queries see, once for layers that are alike
    append       new keys and values of a layer -> all that it attends to, in each layer
    source_kv    keys and values of the source, in each layer of a decoder with a source
    end_pass     the tokens belong to the cache

Rows are the sequences of a batch. `insert` puts new rows in the places of finished ones while the
others continue, and `compact` frees the columns of those that left: `generation.slots` uses both.

Letters: B rows, T new tokens, S tokens so far, C capacity, K key-value heads, E head width, D model
    width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from miniformer.model.masks import Visibility

SourceProjection = Callable[[Tensor], tuple[Tensor, Tensor]]  # [B, S, D] -> two of [B, K, S, E]


class CacheSpec(NamedTuple):
    """Sizes and types of a cache.

    Attributes:
        windows: sliding window of each layer; None: it has none.
        batch_size: number B of rows.
        capacity: number C of columns: the tokens of a row, its padding, and the columns trimmed
            from it that another row still uses.
        kv_heads: number K of key-value heads of each layer.
        head_dim: width E of a head.
        device: of keys and values.
        dtype: of the keys and values that `append` returns.
    """

    windows: Sequence[int | None]
    batch_size: int
    capacity: int
    kv_heads: Sequence[int]
    head_dim: int
    device: torch.device
    dtype: torch.dtype


class PassCache(Protocol):
    """The part of a cache that a forward pass uses."""

    batch_size: int
    final_lengths: Tensor
    """Length of each row when decoding is done, int [B, 1]; used by rotary scaling that depends on
    the length. The capacity by default; set it before the first pass if the length is known."""

    @property
    def length(self) -> int:
        """Columns in use; without padding, the tokens of each row. At most C."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int [B]."""

    def extend(self, attention_mask: Tensor | None, num_new: int) -> Tensor:
        """Begins a pass with T = `num_new` tokens, and discards those of a pass that failed.

        Args:
            attention_mask: bool [B, T], True = a real token; None: all are.
            num_new: number of columns to add.

        Returns:
            Positions, int [B, T] ([1, T] where all rows are equal); those of padding are arbitrary
            but valid.

        Raises:
            ValueError: the cache is full.
        """

    def visibility(self, layer: int, positions: Tensor, window: int | None) -> Visibility:
        """Returns the visibility of a layer's keys, in the order of `append`, for the new queries.

        Args:
            layer: index of the layer; a layer with the same window may use the result, too.
            positions: those of `extend`.
            window: sliding window of the layer.
        """

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values, [B, K, T, E]; returns all, [B, K, S, E].

        Keys are rotated. Tokens that no query of this pass sees may be left out.
        """

    def source_kv(
        self, layer: int, memory: Tensor, project: SourceProjection
    ) -> tuple[Tensor, Tensor]:
        """Returns a decoder layer's keys and values of the source, two of [B, K, S, E].

        A source may grow between passes: only its new columns are projected, so the features of the
        others must be those of the pass before. Consecutive rows may share a source; then B is the
        number of sources.

        Args:
            layer: index of the layer; the layers call in order.
            memory: features of the source, [B, S, D].
            project: projection of features to keys and values.

        Raises:
            ValueError: the source is shorter than before.
        """

    def end_pass(self) -> None:
        """Ends the pass that `extend` began: every layer has appended its keys and values."""


class Cache(PassCache, Protocol):
    """Key-value cache of a batch."""

    capacity: int

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, including those of the source."""

    def reorder(self, rows: Tensor, *, same_source: bool = False) -> None:
        """Replaces row b by row `rows[b]` in place, as beam search needs.

        Args:
            rows: int [B].
            same_source: each row is replaced by a row with the same source.

        Raises:
            ValueError: `rows` has another shape, or rows share a source and `same_source` is False.
        """

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Keeps these rows only, in this order; rows may repeat.

        Args:
            rows: int [any].
            sources: indices of a decoder's sources, where rows share them; None: `rows`.
        """

    def trim(self, lengths: int | Tensor) -> None:
        """Truncates each row to its first tokens, as after a rejected draft.

        An empty cache drops its source, too, and can take another.

        Args:
            lengths: tokens to retain: one number, or int [B], one for each row.

        Raises:
            ValueError: the cache no longer has the tokens, or a length is below 0.
        """

    def insert(self, rows: Tensor, cache: Cache) -> None:
        """Replaces rows in place by those of another cache, which stays as it is.

        Args:
            rows: int [n], without repetition.
            cache: cache of n rows, made by the same component with the same spec apart from the
                number of rows. Sources are padded to the longest.

        Raises:
            ValueError: the caches do not fit.
        """

    def compact(self) -> None:
        """Frees the columns in which no row has a token, in place; positions stay as they are."""

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the content as contiguous tensors, for safetensors; see `load_state_dict`."""

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Loads the `state_dict` of a cache of the same kind, model and number of rows.

        Raises:
            ValueError: the state does not fit.
        """
