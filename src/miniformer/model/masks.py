"""Attention masks and positions; no other module makes any.

Masks are bool, True = may attend. Positions count real tokens, so that left padding, right padding,
packing and caching all give a token the same position.

Letters: B batch, T query length, S key length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Visibility(NamedTuple):
    """Description of the keys that each query may attend to; `make_mask` makes a mask of it.

    A query sees a key of its own segment if the key is real, if it is not later (`causal`), and if
    it is within the window (`window`: among the last `window` positions when causal, else at most
    `window // 2` away on either side).

    Attributes:
        is_dense: all rows are equal, all tokens are real, and the queries are the last T of the S
            keys. Then only the lengths matter.
    """

    causal: bool
    window: int | None
    query_positions: Tensor  # int [B or 1, T]
    key_positions: Tensor  # int [B or 1, S]; negative: no token
    query_segments: Tensor | None = None  # int [B, T]; 0: padding; None: one segment
    key_segments: Tensor | None = None  # int [B, S]
    is_dense: bool = False

    @property
    def num_queries(self) -> int:
        """T."""
        return self.query_positions.shape[1]

    @property
    def num_keys(self) -> int:
        """S."""
        return self.key_positions.shape[1]

    @property
    def window_active(self) -> bool:
        """True if the window masks any key."""
        if self.window is None:
            return False
        return not self.is_dense or self.num_keys > (
            self.window if self.causal else self.window // 2 + 1
        )


class AttentionMask(NamedTuple):
    """The keys that each query may attend to, in the cheapest form.

    Attributes:
        allowed: bool [B or 1, 1, T, S]; None: every query sees every key or, with `is_causal`
            (then T == S), every key up to its own. Every row has at least one True.
        is_causal: see `allowed`.
        fully_masked: bool [B, 1, T, 1], the queries that see no key; attention gives zeros there.
            None: there are none.
    """

    allowed: Tensor | None = None
    is_causal: bool = False
    fully_masked: Tensor | None = None


def make_visibility(
    batch_size: int,
    length: int,
    *,
    causal: bool,
    window: int | None = None,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    device: torch.device,
) -> Visibility:
    """Makes the visibility of a pass without a cache.

    Args:
        batch_size, length: rows B, tokens T.
        causal, window: see `Visibility`.
        attention_mask: bool [B, T], True = a real token; None: all are.
        segment_ids: int [B, T], tokens see only their own segment and 0 is padding; None: one
            segment.
        device: device of the tensors.
    """
    positions = make_positions(
        batch_size, length, attention_mask=attention_mask, segment_ids=segment_ids, device=device
    )
    segments = segment_ids
    if attention_mask is not None:
        real = attention_mask.long()
        segments = real if segments is None else segments * real
    is_dense = segments is None
    return Visibility(causal, window, positions, positions, segments, segments, is_dense)


def make_mask(visibility: Visibility, *, explicit: bool = False) -> AttentionMask:
    """Makes a mask, with `allowed` wherever a key is masked if it has to be `explicit`."""
    if visibility.is_dense and not visibility.window_active:
        if not visibility.causal or visibility.num_queries == 1:
            return AttentionMask()
        if visibility.num_queries == visibility.num_keys and not explicit:
            return AttentionMask(is_causal=True)
    queries, keys = visibility.query_positions[:, :, None], visibility.key_positions[:, None, :]
    allowed = (keys >= 0).expand(-1, visibility.num_queries, -1)  # [B, T, S]
    if visibility.key_segments is not None:
        assert visibility.query_segments is not None
        query_segments = visibility.query_segments[:, :, None]
        key_segments = visibility.key_segments[:, None, :]
        allowed = allowed & (query_segments == key_segments) & (key_segments != 0)
    if visibility.causal:
        allowed = allowed & (keys <= queries)
    if visibility.window is not None:
        max_distance = visibility.window - 1 if visibility.causal else visibility.window // 2
        allowed = allowed & ((queries - keys).abs() <= max_distance)
    if visibility.is_dense:
        return AttentionMask(allowed[:, None])
    fully_masked = ~allowed.any(-1, keepdim=True)  # an empty softmax would be NaN
    return AttentionMask((allowed | fully_masked)[:, None], fully_masked=fully_masked[:, None])


def make_cross_mask(source_mask: Tensor | None) -> AttentionMask:
    """Makes the mask over a source: bool [B, S], True = a real token; None: all."""
    if source_mask is None:
        return AttentionMask()
    allowed = source_mask[:, None, None, :]  # [B, 1, 1, S]
    fully_masked = ~allowed.any(-1, keepdim=True)
    return AttentionMask(allowed | fully_masked, fully_masked=fully_masked)


def source_mask(features: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mask of a source, [B, S, D], with True everywhere if it is None: bool [B, S]."""
    return torch.ones_like(features[..., 0], dtype=torch.bool) if mask is None else mask


def make_positions(
    batch_size: int,
    length: int,
    *,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    device: torch.device,
) -> Tensor:
    """Returns positions within each sequence: int [B, T], or [1, T] where all rows are equal.

    Positions of padding are arbitrary but within range.
    """
    columns = torch.arange(length, device=device)[None]
    if segment_ids is None and attention_mask is None:
        return columns
    if attention_mask is None:
        attention_mask = torch.ones(batch_size, length, dtype=torch.bool, device=device)
    if segment_ids is None:
        return (attention_mask.cumsum(1) - 1).clamp_min(0)
    # Stable sorting makes the tokens of each segment contiguous, in their order.
    segment_ids, order = segment_ids.sort(dim=1, stable=True)
    real = attention_mask.gather(1, order)
    num_before = real.cumsum(1) - real.long()  # real tokens before each, of smaller segments too
    start = torch.searchsorted(segment_ids, segment_ids)  # first column of its segment
    positions = num_before - num_before.gather(1, start)
    return torch.zeros_like(positions).scatter(1, order, positions)


def make_cached_positions(mask: Tensor) -> Tensor:
    """Returns the position of each column of a cache: int [B, S]; -1: no token.

    `mask`: bool [B, S], True = a real token.
    """
    return (mask.cumsum(1) - 1).masked_fill(~mask, -1)


def make_sequence_lengths(
    length: int,
    *,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    positions: Tensor | None = None,
    device: torch.device,
) -> Tensor:
    """Counts the real tokens of the sequence of each token: int [B or 1, T or 1].

    With given positions, [B, T], it is the largest one of the sequence plus one. The value for
    padding is arbitrary.
    """
    if positions is not None:
        return _largest_positions(positions, attention_mask, segment_ids) + 1
    if segment_ids is None:
        if attention_mask is None:
            return torch.full((1, 1), length, device=device)
        return attention_mask.sum(1, keepdim=True)
    if attention_mask is not None:
        segment_ids = segment_ids * attention_mask.long()
    # In sorted order the tokens of a segment are contiguous.
    ordered, segment_ids = segment_ids.sort(dim=1).values, segment_ids.contiguous()
    stops = torch.searchsorted(ordered, segment_ids, right=True)
    return stops - torch.searchsorted(ordered, segment_ids)


def _largest_positions(
    positions: Tensor, attention_mask: Tensor | None, segment_ids: Tensor | None
) -> Tensor:
    """Largest position in the sequence of each token, of real tokens: int [B, T or 1]."""
    if attention_mask is not None:
        positions = positions * attention_mask
    if segment_ids is None:
        return positions.amax(1, keepdim=True)
    ordered, segment_ids = segment_ids.sort(dim=1).values, segment_ids.contiguous()
    index = torch.searchsorted(ordered, segment_ids)  # equal in a segment, below T
    largest = torch.zeros_like(positions).scatter_reduce(1, index, positions, "amax")
    return largest.gather(1, index)
