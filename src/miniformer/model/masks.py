"""The one place where attention masks and positions are made.

Masks are bool, True = may attend. Positions count real tokens, so that left padding, right padding,
packing and caching all give a token the same position.

Letters: B batch, T query length, S key length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionMask(NamedTuple):
    """Who may attend to whom, in the cheapest form that says it.

    `allowed` is bool [B or 1, 1, T, S], or None where every query sees every key, or, with
    `is_causal` (T == S then), every key up to its own. Every row of `allowed` has at least one
    True; the rows that had none are listed in `blind`, bool [B, 1, T, 1], and attention must give
    zeros there.
    """

    allowed: Tensor | None = None
    is_causal: bool = False
    blind: Tensor | None = None


def make_mask(
    *,
    causal: bool,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> AttentionMask:
    """Mask of a full pass.

    Args:
        causal: whether a query sees no later key.
        attention_mask: bool [B, T], True = a real token; None: all are.
        segment_ids: int [B, T], tokens see only their own segment and 0 is padding; None: one
            segment.
    """
    if segment_ids is not None:
        allowed = segment_ids[:, :, None] == segment_ids[:, None, :]
        allowed = allowed & (segment_ids != 0)[:, None, :]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None, :]
    elif attention_mask is not None:
        length = attention_mask.shape[1]
        allowed = attention_mask[:, None, :].expand(-1, length, -1)  # [B, T] -> [B, T, T]
    else:
        return AttentionMask(is_causal=causal)
    if causal:
        allowed = allowed & _causal(allowed.shape[1], allowed.shape[2], allowed.device)
    return _guard(allowed)


def make_cached_mask(
    real: Tensor | None, *, start: int, stop: int, device: torch.device
) -> AttentionMask:
    """Causal mask of the queries at cache columns [start, stop) over the keys at columns [0, stop).

    Args:
        real: bool [B, stop], which columns hold real tokens; None: all do.
        start: first query column.
        stop: one past the last query column.
        device: where to make it.
    """
    queries = stop - start
    if real is None and (queries == 1 or start == 0):
        return AttentionMask(is_causal=queries > 1)
    causal = _causal(queries, stop, device)
    if real is None:
        return AttentionMask(allowed=causal[None, None])
    return _guard(causal & real[:, None, :])


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


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [T, S]: the last query stands at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _guard(allowed: Tensor) -> AttentionMask:
    """Opens the rows that may attend to nothing, where softmax would give NaN, and lists them."""
    blind = ~allowed.any(-1, keepdim=True)  # [B, T, 1]
    return AttentionMask(allowed=(allowed | blind)[:, None], blind=blind[:, None])
