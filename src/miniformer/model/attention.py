"""Multi-head attention: Vaswani et al. 2017; grouped key-value heads: Ainslie et al. 2023.

Letters: B batch, T query length, S key length, H query heads, K key-value heads, D model width, E
    head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig
from miniformer.model.attention_backends import BACKENDS
from miniformer.model.attention_backends.functions import ScoreOptions
from miniformer.model.cache.protocol import PassCache
from miniformer.model.norm import make_norm
from miniformer.model.ops.linear import local_width, matmul_dtype
from miniformer.model.ops.products import Linear
from miniformer.model.position import Rotation, apply_rotary


class AttentionContext(NamedTuple):
    """Data that equal attention layers share in one forward pass."""

    backend: str
    mask: Any  # from `attention_backends.prepare`
    rotation: Rotation | None = None  # of queries and new keys; None: no rotation
    bias: Tensor | None = None  # [B or 1, H, T, S], added to the scores
    weights: list[Tensor] | None = None  # the backend `plain` appends its attention weights


class MultiHeadAttention(nn.Module):
    """Self-attention with multi-head, grouped-query or multi-query keys and values.

    To change it, override one of its steps: `queries`, `keys_values` or `attend`.

    The numbers of heads are those of the projections' local widths, so a layer also works with
    projections that are sliced by heads: pruned, or sharded over devices.

    Args:
        config: widths, heads, biases and options of the scores.
        window: sliding window, see `TransformerConfig`; None: no window.
        cross: True for a decoder's attention to the source.

    Attributes:
        kept_heads: indices of the query heads that slicing has left, which select the heads of a
            position bias; None: all.
    """

    def __init__(
        self, config: TransformerConfig, *, window: int | None = None, cross: bool = False
    ) -> None:
        super().__init__()
        self.head_dim, self.window, self.cross = config.head_width, window, cross
        self.kept_heads: tuple[int, ...] | None = None
        self.scale, self.softcap = config.attention_scale, config.logit_softcap
        self.backend = "auto"  # see `attention_backends`
        width, kv_width = config.n_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = Linear(config.d_model, width, bias=config.has_qkv_bias)
        self.k_proj = Linear(config.d_model, kv_width, bias=config.has_qkv_bias)
        self.v_proj = Linear(config.d_model, kv_width, bias=config.has_qkv_bias)
        self.o_proj = Linear(width, config.d_model, bias=config.has_attention_bias)
        self.qk_norm_per_head = config.qk_norm == "head"
        self.q_norm = self.k_norm = None
        if config.qk_norm is not None:
            self.q_norm = make_norm(config, self.head_dim if self.qk_norm_per_head else width)
            self.k_norm = make_norm(config, self.head_dim if self.qk_norm_per_head else kv_width)
        sinks = config.attention_sinks and not cross
        self.sinks = nn.Parameter(torch.zeros(config.n_heads)) if sinks else None

    @property
    def n_heads(self) -> int:
        """Number H of query heads, from the width of `q_proj`."""
        return local_width(self.q_proj) // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Number K of key-value heads, from the width of `k_proj`."""
        return local_width(self.k_proj) // self.head_dim

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        *,
        cache: PassCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Computes self-attention.

        Args:
            x: [B, T, D].
            context: mask and positions of this pass.
            cache: earlier keys and values; those of this pass are appended.
            layer: this layer's index in the cache.

        Returns:
            [B, T, D].
        """
        x = x.to(matmul_dtype(x))  # once; autocast would cast it for each linear layer
        q = self.queries(x)
        k, v = self.keys_values(x)
        if context.rotation is not None:
            q, k = apply_rotary(q, context.rotation), apply_rotary(k, context.rotation)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # [B, K, S, E]
        return self.attend(q, k, v, context)

    def queries(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, E]."""
        return self._split_heads(self.q_proj(x), self.q_norm)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, D] -> two of [B, K, S, E]."""
        k = self._split_heads(self.k_proj(x), self.k_norm)
        return k, self._split_heads(self.v_proj(x))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """[B, H, T, E] and two of [B, K, S, E] -> [B, T, D]."""
        scores = ScoreOptions(self.scale, self.softcap, self.sinks, context.bias, context.weights)
        heads = BACKENDS[context.backend](q, k, v, context.mask, scores)
        out: Tensor = self.o_proj(heads.transpose(1, 2).flatten(2))  # [B, T, H*E] -> [B, T, D]
        return out

    def _split_heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        # [B, T, heads*E] -> [B, heads, T, E]
        if norm is not None and not self.qk_norm_per_head:
            x = norm(x)
        x = x.view(*x.shape[:2], x.shape[2] // self.head_dim, self.head_dim)
        if norm is not None and self.qk_norm_per_head:
            x = norm(x)
        return x.transpose(1, 2)


class CrossAttention(MultiHeadAttention):
    """A decoder's attention to the source, whose keys and values are projected once."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, cross=True)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        context: AttentionContext,
        *,
        memory: Tensor,
        cache: PassCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Computes cross-attention; see `MultiHeadAttention.forward`.

        `memory` is the encoded source, [B, S, D]. Its keys and values are stored in the cache in
        the first pass. With fewer rows than x, each row is the source of as many consecutive ones.
        """
        if cache is None:
            source = self.keys_values(memory)
        else:
            source = cache.source_kv(layer, memory, self.keys_values)
        if memory.shape[0] == x.shape[0]:
            return self.attend(self.queries(x), *source, context)
        # Rows with one source are queries of one row, since a source has no order to mask.
        queries = self.queries(x.reshape(memory.shape[0], -1, x.shape[2]))
        return self.attend(queries, *source, context).view_as(x)
