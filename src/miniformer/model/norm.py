"""Normalization over the last dimension.

A norm is built as `norm(dim, eps=..., bias=...)` and maps [..., dim] to [..., dim].
LayerNorm: Ba et al. 2016 (torch's own). RMSNorm: Zhang & Sennrich 2019; zero-centered weight: Gemma
Team 2024.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig


def layernorm(dim: int, *, eps: float, bias: bool) -> nn.Module:
    """Builds torch's LayerNorm; the signature is that of all norms."""
    return nn.LayerNorm(dim, eps=eps, bias=bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, without a mean or a bias; `bias` is ignored."""

    def __init__(self, dim: int, *, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _rms_norm(x, self.weight, self.eps)


class ZeroCenteredRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight): bfloat16 is exact near zero, and weight decay is neutral."""

    def __init__(self, dim: int, *, eps: float, bias: bool = False) -> None:
        super().__init__(dim, eps=eps, bias=bias)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.weight.dtype
        scale = 1 + self.weight.to(torch.promote_types(dtype, torch.float32))
        return _rms_norm(x, scale, self.eps).to(torch.promote_types(x.dtype, dtype))


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if torch.compiler.is_compiling():
        return _eager_rms_norm(x, weight, eps)  # fused by the compiler
    if x.device.type == "cuda":
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    wide = x.dtype in (torch.float32, torch.float64)
    # torch.func (per-sample gradients, forward mode) needs plain operations.
    in_transform = torch._C._are_functorch_transforms_active()
    if x.device.type == "cpu" and wide and x.dtype == weight.dtype and not in_transform:
        out: Tensor = _FusedRMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return out
    return _eager_rms_norm(x, weight, eps)


def _eager_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    # The square of a half-precision value may overflow or underflow.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


class _FusedRMSNorm(torch.autograd.Function):
    """RMSNorm on a CPU in a third of the time.

    Forward and backward of [2048, 384] in float32 on two cores, torch 2.13: 0.93 ms; eager 3.0 ms;
    torch's own 3.5 ms; LayerNorm 0.62 ms. The backward pass uses LayerNorm's fused kernel with a
    mean of zero, and then adds back the gradient by the mean.

    Letters: N rows, D width.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [N, 1]
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        ctx.eps = eps
        out: Tensor = (x * rstd).mul_(weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            return *_differentiable_backward(ctx, grad, x, weight), None
        output_mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, torch.zeros_like(rstd), rstd, weight, None, output_mask
        )
        if dx is not None:
            dx.add_((grad @ weight)[..., None].mul_(rstd).div_(x.shape[-1]))
        return dx, dw, None


def _differentiable_backward(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Computes the needed gradients with operations that autograd can differentiate again."""
    needs_grad = ctx.needs_input_grad[:2]
    inputs = [tensor for tensor, needed in zip((x, weight), needs_grad, strict=True) if needed]
    out = _eager_rms_norm(x, weight, ctx.eps)
    gradients = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
    dx, dw = (next(gradients) if needed else None for needed in needs_grad)
    return dx, dw


def make_norm(config: TransformerConfig, dim: int | None = None) -> nn.Module:
    """Builds the config's norm over `dim` elements; None: d_model."""
    build = registry.get("norm", config.norm)
    norm: nn.Module = build(dim or config.d_model, eps=config.norm_eps, bias=config.has_norm_bias)
    return norm
