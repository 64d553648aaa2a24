"""The feed-forward sub-layer: plain (Vaswani et al. 2017) or gated (Shazeer 2020).

An activation is an elementwise function of a tensor, registered as "activation", or as
"gated_activation" for that of a gate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig
from miniformer.model.ops.linear import matmul_dtype
from miniformer.model.ops.products import Linear


def gelu(x: Tensor) -> Tensor:
    """Gaussian error linear unit (Hendrycks & Gimpel 2016), exact."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Tanh approximation of GELU, as in GPT-2."""
    return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)); [B, T, D] -> [B, T, D]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        kind = "gated_activation" if config.is_gated else "activation"
        self.activation: Callable[[Tensor], Tensor] = registry.get(kind, config.activation)
        width, inner, bias = config.d_model, config.ff_width, config.has_feed_forward_bias
        self.gate_proj = Linear(width, inner, bias=bias) if config.is_gated else None
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(matmul_dtype(x))  # once; autocast would cast it for each linear layer
        up = self.up_proj(x)  # [B, T, D] -> [B, T, F]
        inner = (
            self.activation(up)
            if self.gate_proj is None
            else self.activation(self.gate_proj(x)) * up
        )
        out: Tensor = self.down_proj(inner)
        return out
