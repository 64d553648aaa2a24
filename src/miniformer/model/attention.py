"""Multi-head attention: Vaswani et al. 2017; grouped key-value heads: Ainslie et al. 2023.

Letters: B batch, T query length, S key length, H query heads, K key-value heads, D model width, E
    head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from miniformer.config import TransformerConfig
from miniformer.model.cache import KVCache
from miniformer.model.masks import AttentionMask
from miniformer.model.position import Rotation, rotate


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Scaled dot-product attention; the only place where it is called.

    Args:
        q: queries, [B, H, T, E].
        k: keys, [B, K, S, E]; K divides H, and key-value head j serves query heads j*H/K to
            (j+1)*H/K - 1.
        v: values, [B, K, S, E].
        mask: who may attend to whom; a query that may attend to nothing gets zeros.

    Returns:
        [B, H, T, E].
    """
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask.allowed,
        is_causal=mask.is_causal,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out if mask.blind is None else out.masked_fill(mask.blind, 0.0)


class MultiHeadAttention(nn.Module):
    """Self-attention with multi-head, grouped-query or multi-query keys and values."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_heads, self.head_dim = (
            config.n_heads,
            config.kv_heads,
            config.head_width,
        )
        self.q_proj = nn.Linear(config.d_model, self.n_heads * self.head_dim, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.o_proj = nn.Linear(self.n_heads * self.head_dim, config.d_model, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        *,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Lets the positions of a sequence read from each other.

        Args:
            x: [B, T, D].
            mask: who may attend to whom, over all S keys when there is a cache.
            rotation: rotary angles of the T positions; None: queries and keys are not rotated.
            cache: earlier keys and values, to which this pass's are added.
            layer: this layer's index in the cache.

        Returns:
            [B, T, D].
        """
        q = self._split(self.q_proj(x), self.n_heads)  # [B, H, T, E]
        k = self._split(self.k_proj(x), self.kv_heads)  # [B, K, T, E]
        v = self._split(self.v_proj(x), self.kv_heads)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # [B, K, S, E], keys already rotated
        mixed = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, H, T, E] -> [B, T, H*E]
        out: Tensor = self.o_proj(mixed)  # [B, T, D]
        return out

    def _split(self, x: Tensor, heads: int) -> Tensor:
        # [B, T, heads*E] -> [B, heads, T, E]
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)
