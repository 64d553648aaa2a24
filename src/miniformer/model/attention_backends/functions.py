"""Attention functions, one for each backend; `attention_backends.select_backend` selects one.

Letters: B batch, T query length, S key length, H query heads, K key-value heads, E head width,
    N real tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.model.masks import AttentionMask, Visibility, make_mask
from miniformer.model.ops.linear import matmul_dtype


class ScoreOptions(NamedTuple):
    """Options for the scores, the query-key products before the softmax."""

    scale: float | None = None  # factor; None: 1 / sqrt(E)
    softcap: float | None = None  # scores s become c * tanh(s / c)
    sinks: Tensor | None = None  # [H]: an additional logit of each softmax, without a value
    bias: Tensor | None = None  # [B or 1, H, T, S], added before the soft-cap
    weights: list[Tensor] | None = None  # `plain` appends its attention weights, [B, H, T, S]


class VarlenLayout(NamedTuple):
    """The real tokens of a batch, segment after segment, for `varlen`."""

    indices: Tensor  # int [N]: row * T + column of each token
    cu_seqlens: Tensor  # int32 [segments + 1]: start of each segment, then N
    max_seqlen: int


def plain(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scores: ScoreOptions) -> Tensor:
    """Eager attention; the softmax is in float32."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # [B, H, S, E]
    scale = q.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    # Scaled before the product, which could overflow in float16.
    s = ((q * scale) @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    if scores.bias is not None:
        s = s + scores.bias
    if scores.softcap is not None:
        s = scores.softcap * torch.tanh(s / scores.softcap)
    if mask.allowed is not None:
        s = s.masked_fill(~mask.allowed, float("-inf"))
    if scores.sinks is not None:
        sinks = scores.sinks[None, :, None, None].expand(*s.shape[:3], 1)
        s = torch.cat((s, sinks.to(s.dtype)), -1)  # [B, H, T, S + 1]
    weights = s.softmax(-1)[..., : k.shape[2]].to(v.dtype)
    if scores.weights is not None:
        scores.weights.append(_zero_fully_masked(weights, mask))
    return _zero_fully_masked(weights @ v, mask)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scores: ScoreOptions) -> Tensor:
    """torch's `scaled_dot_product_attention`."""
    attn_mask: Tensor | None = mask.allowed
    if scores.bias is not None:
        attn_mask = scores.bias.to(q.dtype)
        if mask.allowed is not None:
            attn_mask = attn_mask.masked_fill(~mask.allowed, float("-inf"))
    if scores.sinks is not None:
        # A key of zeros has the score 0, to which the mask adds the sink; its value is zeros.
        sinks = scores.sinks.to(q.dtype)[None, :, None, None]
        bias = _mask_to_bias(attn_mask, q, k)
        attn_mask = torch.cat((bias, sinks.expand(bias.shape[0], -1, bias.shape[2], 1)), -1)
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=attn_mask,
        is_causal=mask.is_causal,
        scale=scores.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return _zero_fully_masked(out, mask)


def flex(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, scores: ScoreOptions) -> Tensor:
    """torch's `flex_attention`; compiled on a GPU."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

    if not q.numel():  # flex_attention cannot make blocks of an empty tensor
        return plain(q, k, v, make_mask(visibility), scores)

    def score_mod(s: Tensor, b: Tensor, h: Tensor, t: Tensor, key: Tensor) -> Tensor:
        if scores.bias is not None:
            rows = scores.bias.shape[0]
            s = s + scores.bias[b if rows > 1 else 0, h, t, key]
        if scores.softcap is not None:
            s = scores.softcap * torch.tanh(s / scores.softcap)
        return s

    modified = scores.bias is not None or scores.softcap is not None
    blocks = None
    if visibility.causal or visibility.window_active or not visibility.is_dense:
        rows = None if visibility.is_dense else q.shape[0]
        blocks = create_block_mask(
            _make_mask_mod(visibility), rows, None, q.shape[2], k.shape[2], device=q.device
        )
    out, aux = _flex_attention(q.device.type)(
        q,
        k,
        v,
        score_mod=score_mod if modified else None,
        block_mask=blocks,
        scale=scores.scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if scores.sinks is not None:  # a sink only increases the softmax's denominator
        out = out * torch.sigmoid(aux.lse - scores.sinks[None, :, None]).to(out.dtype)[..., None]
    if visibility.is_dense:
        return out  # type: ignore[no-any-return]
    return _zero_fully_masked(out, make_mask(visibility))


def varlen(
    q: Tensor, k: Tensor, v: Tensor, packed: tuple[VarlenLayout, Visibility], scores: ScoreOptions
) -> Tensor:
    """FlashAttention 2 over the concatenated real tokens."""
    from torch.nn.attention.varlen import varlen_attn

    layout, visibility = packed
    if not len(layout.indices):
        return plain(q, k, v, make_mask(visibility), scores)
    dtype = matmul_dtype(q)
    batch, heads, length, width = q.shape
    group = heads // k.shape[1]
    shared: dict[str, Any] = {"enable_gqa": True} if group > 1 else {}
    if shared and "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # torch 2.11
        shared, (k, v) = {}, (x.repeat_interleave(group, 1) for x in (k, v))

    def gather(x: Tensor) -> Tensor:  # [B, heads, T, E] -> [N, heads, E up to a multiple of 8]
        x = x.transpose(1, 2).reshape(batch * length, -1, width)[layout.indices].to(dtype)
        return F.pad(x, (0, -width % 8))  # zeros add nothing to the products

    if visibility.window is None:
        window = (-1, 0 if visibility.causal else -1)
    elif visibility.causal:
        window = (visibility.window - 1, 0)
    else:
        window = (visibility.window // 2, visibility.window // 2)
    out = varlen_attn(
        gather(q),
        gather(k),
        gather(v),
        layout.cu_seqlens,
        layout.cu_seqlens,
        layout.max_seqlen,
        layout.max_seqlen,
        scale=width**-0.5 if scores.scale is None else scores.scale,
        window_size=window,
        **shared,
    )
    assert isinstance(out, Tensor)
    rows = out.new_zeros(batch * length, heads, width)
    rows = rows.index_copy(0, layout.indices, out[..., :width])
    return rows.view(batch, length, heads, width).transpose(1, 2)


def pack(visibility: Visibility, batch_size: int) -> tuple[VarlenLayout, Visibility]:
    """Returns the layout in which the real tokens of each segment are contiguous."""
    segments = visibility.query_segments
    if segments is None:
        segments = torch.ones_like(visibility.query_positions).expand(batch_size, -1)
    row = torch.arange(len(segments), device=segments.device)[:, None].expand_as(segments)
    indices = segments.sort(dim=1, stable=True).indices + row * segments.shape[1]
    indices = indices.flatten()
    indices = indices[segments.flatten()[indices] != 0]
    row, segments = row.flatten()[indices], segments.flatten()[indices]
    is_start = (row[1:] != row[:-1]) | (segments[1:] != segments[:-1])
    starts = F.pad(is_start.nonzero()[:, 0] + 1, (1, 1))  # [segments + 1]
    starts[-1] = len(indices)
    return VarlenLayout(indices, starts.to(torch.int32), int(starts.diff().max())), visibility


def _zero_fully_masked(out: Tensor, mask: AttentionMask) -> Tensor:
    return out if mask.fully_masked is None else out.masked_fill(mask.fully_masked, 0.0)


def _mask_to_bias(allowed: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """Converts a mask to a bias of the scores, [B or 1, H, T, S]."""
    shape = (-1, q.shape[1], q.shape[2], k.shape[2])
    if allowed is None:
        return q.new_zeros(1, 1, 1, 1).expand(1, *shape[1:])
    if allowed.dtype == torch.bool:
        allowed = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, float("-inf"))
    return allowed.expand(shape)


def _make_mask_mod(visibility: Visibility) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Makes flex_attention's `mask_mod` of a visibility."""
    offset = visibility.num_keys - visibility.num_queries

    def mask_mod(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if visibility.is_dense:
            query, key, allowed = t + offset, s, s >= 0
        else:
            query = visibility.query_positions[b if len(visibility.query_positions) > 1 else 0, t]
            key = visibility.key_positions[b if len(visibility.key_positions) > 1 else 0, s]
            allowed = key >= 0
        if visibility.key_segments is not None and visibility.query_segments is not None:
            segment = visibility.key_segments[b, s]
            allowed = allowed & (visibility.query_segments[b, t] == segment) & (segment != 0)
        if visibility.causal:
            allowed = allowed & (key <= query)
        if visibility.window is not None:
            max_distance = visibility.window - 1 if visibility.causal else visibility.window // 2
            allowed = allowed & ((query - key).abs() <= max_distance)
        return allowed

    return mask_mod


@cache
def _flex_attention(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    function: Callable[..., Any] = flex_attention
    return torch.compile(function) if device == "cuda" else function
