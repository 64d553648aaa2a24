"""The one place where attention masks and positions are made.

Masks are bool, True = may attend. Positions count real tokens, so that left padding, right padding,
packing and caching all give a token the same position.

Letters: B batch, T query length, S key length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Visibility(NamedTuple):
    """Who may attend to whom, described; `make_mask` writes it out.

    A query sees a key of its own segment if the key is real, if it is not later (`causal`), and if
    it is near enough (`window`: among the last `window` positions when causal, else at most half of
    it away on either side).

    `in_order` says that there is nothing to know about single tokens: all rows are alike, all
    tokens real, and the queries are the last T of the S keys. Then only the lengths matter.
    """

    causal: bool
    window: int | None
    query_positions: Tensor  # int [B or 1, T]
    key_positions: Tensor  # int [B or 1, S]; negative: no token is there
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
        """Whether the window hides anything from anyone."""
        if self.window is None:
            return False
        return not self.is_dense or self.num_keys > (
            self.window if self.causal else self.window // 2 + 1
        )


class AttentionMask(NamedTuple):
    """Who may attend to whom, in the cheapest form that says it.

    `allowed` is bool [B or 1, 1, T, S], or None where every query sees every key, or, with
    `is_causal` (T == S then), every key up to its own. Every row of `allowed` has at least one
    True; the rows that had none are listed in `blind`, bool [B, 1, T, 1], and attention must give
    zeros there.
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
    """Visibility in a full pass.

    Args:
        batch_size: rows B.
        length: tokens T.
        causal: whether a query sees no later key.
        window: see `Visibility`.
        attention_mask: bool [B, T], True = a real token; None: all are.
        segment_ids: int [B, T], tokens see only their own segment and 0 is padding; None: one
            segment.
        device: where to make it.
    """
    positions = make_positions(
        batch_size, length, attention_mask=attention_mask, segment_ids=segment_ids, device=device
    )
    segments = segment_ids
    if attention_mask is not None:
        real = attention_mask.long()
        segments = real if segments is None else segments * real
    in_order = segments is None
    return Visibility(causal, window, positions, positions, segments, segments, in_order)


def make_mask(visibility: Visibility, *, explicit: bool = False) -> AttentionMask:
    """Writes a visibility out.

    Args:
        seen: what to write out.
        explicit: give `allowed` wherever anything is hidden, even what `is_causal` could say.
    """
    if visibility.is_dense:
        if not visibility.window_active:
            if not visibility.causal or visibility.num_queries == 1:
                return AttentionMask()
            if visibility.num_queries == visibility.num_keys and not explicit:
                return AttentionMask(is_causal=True)
        return AttentionMask(allowed=_dense_mask(visibility)[None, None])
    queries, keys = visibility.query_positions[:, :, None], visibility.key_positions[:, None, :]
    allowed = (keys >= 0).expand(-1, visibility.num_queries, -1)  # [B, T, S]
    if visibility.key_segments is not None:
        assert visibility.query_segments is not None
        own, other = visibility.query_segments[:, :, None], visibility.key_segments[:, None, :]
        allowed = allowed & (own == other) & (other != 0)
    if visibility.causal:
        allowed = allowed & (keys <= queries)
    if visibility.window is not None:
        reach = visibility.window - 1 if visibility.causal else visibility.window // 2
        allowed = allowed & ((queries - keys).abs() <= reach)
    blind = ~allowed.any(-1, keepdim=True)  # softmax over nothing would be NaN
    return AttentionMask(allowed=(allowed | blind)[:, None], fully_masked=blind[:, None])


def make_cross_mask(source_mask: Tensor | None) -> AttentionMask:
    """Mask of every target token over the source: bool [B, S], True = a real token; None: all."""
    if source_mask is None:
        return AttentionMask()
    allowed = source_mask[:, None, None, :]  # [B, 1, 1, S]
    blind = ~allowed.any(-1, keepdim=True)
    return AttentionMask(allowed=allowed | blind, fully_masked=blind)


def make_positions(
    batch_size: int,
    length: int,
    *,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    device: torch.device,
) -> Tensor:
    """Positions within each sequence: int [B, T], or [1, T] where all rows are alike.

    Positions of padding are arbitrary but within range.
    """
    columns = torch.arange(length, device=device)[None]
    if segment_ids is None and attention_mask is None:
        return columns
    if attention_mask is None:
        attention_mask = torch.ones(batch_size, length, dtype=torch.bool, device=device)
    if segment_ids is None:
        return (attention_mask.cumsum(1) - 1).clamp_min(0)
    # Sorting lays each segment's tokens side by side, in their order, wherever they stand.
    segment_ids, order = segment_ids.sort(dim=1, stable=True)
    real = attention_mask.gather(1, order)
    before = real.cumsum(1) - real.long()  # real tokens of this and smaller segments before each
    first = torch.searchsorted(segment_ids, segment_ids)  # column where its segment begins
    counts = before - before.gather(1, first)
    return torch.zeros_like(counts).scatter(1, order, counts)


def make_sequence_lengths(
    length: int,
    *,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    device: torch.device,
) -> Tensor:
    """Real tokens of the sequence that each token belongs to: int [B or 1, T or 1].

    That of padding is arbitrary.
    """
    if segment_ids is None:
        if attention_mask is None:
            return torch.full((1, 1), length, device=device)
        return attention_mask.sum(1, keepdim=True)
    if attention_mask is not None:
        segment_ids = segment_ids * attention_mask.long()
    # In order, a segment's tokens stand from the first place that its number fits to the last.
    ordered, segment_ids = segment_ids.sort(dim=1).values, segment_ids.contiguous()
    ends = torch.searchsorted(ordered, segment_ids, right=True)
    return ends - torch.searchsorted(ordered, segment_ids)


def _dense_mask(visibility: Visibility) -> Tensor:
    """bool [T, S] where all tokens are real and in order: the last query stands at the last key."""
    late = visibility.num_keys - visibility.num_queries
    allowed = torch.ones(
        visibility.num_queries,
        visibility.num_keys,
        dtype=torch.bool,
        device=visibility.key_positions.device,
    )
    if visibility.causal:
        allowed = allowed.tril(late)
        return allowed if visibility.window is None else allowed.triu(late - visibility.window + 1)
    if visibility.window is None:
        return allowed
    return allowed.tril(late + visibility.window // 2).triu(late - visibility.window // 2)
