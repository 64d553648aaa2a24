"""Attention as batched matrix products, for short texts in half precision on a CPU.

The backward pass of torch's fused CPU attention is slow in bfloat16: forward and backward of 48
heads x 256 tokens x 64 take 11.2 ms, these functions 5.4 ms (two cores with AMX, torch 2.13). The
cost: all attention weights are saved for the backward pass, and scores are rounded to bfloat16. The
error is 0.3 to 0.6 % instead of 0.2 %, like that of eager attention in other libraries.

Letters: B batch, T query length, S key length, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.model.attention_backends.functions import ScoreOptions
from miniformer.model.masks import AttentionMask
from miniformer.model.ops.linear import matmul_dtype

MAX_KEYS = 512  # with more keys torch's fused attention is faster


class AdditiveMask(NamedTuple):
    """A mask that is added to the scores."""

    bias: Tensor | None  # 0 or -inf, [B or 1, 1, T, S]
    fully_masked: Tensor | None  # see `AttentionMask`


def additive_mask(mask: AttentionMask, dtype: torch.dtype) -> AdditiveMask:
    """Converts a mask to a bias for scores of type `dtype`."""
    if mask.allowed is None:
        return AdditiveMask(None, mask.fully_masked)
    zeros = torch.zeros_like(mask.allowed, dtype=dtype)
    return AdditiveMask(zeros.masked_fill(~mask.allowed, float("-inf")), mask.fully_masked)


def matmul(q: Tensor, k: Tensor, v: Tensor, mask: AdditiveMask, scores: ScoreOptions) -> Tensor:
    """Batched matrix products; see `attention_backends.BACKENDS`."""
    dtype, group = matmul_dtype(q), q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # [B, H, S, E]
    scale = q.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    out: Tensor = _MatmulAttention.apply(  # type: ignore[no-untyped-call]
        q.to(dtype), k.to(dtype), v.to(dtype), mask.bias, scale
    )
    return out if mask.fully_masked is None else out.masked_fill(mask.fully_masked, 0.0)


class _MatmulAttention(torch.autograd.Function):
    """Attention that saves its weights [B*H, T, S], and no other tensor of that size."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        batch, heads, length, width = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        if bias is not None and bias.shape[0] == 1:
            bias = bias[0]
        elif bias is not None:
            bias = bias.expand(-1, heads, length, -1).flatten(0, 1)
        weights = _scaled_bmm(q, k.transpose(1, 2), scale, bias).softmax(-1)  # [B*H, T, S]
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v).view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this attention has no second derivative; use set_attention_backend(model, 'plain')"
            )
        q, k, v, weights = ctx.saved_tensors
        heads = grad.shape[:2]
        grad = grad.flatten(0, 1).to(v.dtype)
        dv = torch.bmm(weights.transpose(1, 2), grad)
        d_weights = torch.bmm(grad, v.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        dq = _scaled_bmm(d_scores, k, ctx.scale)
        dk = _scaled_bmm(d_scores.transpose(1, 2), q, ctx.scale)
        return *(x.view(*heads, *x.shape[1:]) for x in (dq, dk, dv)), None, None


def _scaled_bmm(a: Tensor, b: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Computes a @ b * scale + bias; scales before rounding, as float16 could overflow."""
    beta = 1 if bias is not None else 0
    if bias is None:  # baddbmm does not read it then
        bias = a.new_empty(1, 1, 1)
    return torch.baddbmm(bias, a, b, beta=beta, alpha=scale)
