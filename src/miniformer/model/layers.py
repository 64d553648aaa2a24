"""Transformer layers: attention and feed-forward, each in a residual branch.

pre     x + dropout(f(norm(x)))               Xiong et al. 2020, GPT-2
post    norm(x + dropout(f(x)))               Vaswani et al. 2017
both    x + dropout(norm'(f(norm(x))))        Gemma 2
output  x + dropout(norm'(f(x)))              OLMo 2
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig
from miniformer.model.attention import AttentionContext, CrossAttention
from miniformer.model.cache.kv_cache import KVCache
from miniformer.model.norm import make_norm


class EncoderLayer(nn.Module):
    """A layer of an encoder or, with a causal mask, of a decoder-only model: [B, T, D] -> the same.

    Args:
        config: its parts.
        index: which layer it is, from 0; decides whether it has the sliding window.
    """

    def __init__(self, config: TransformerConfig, index: int = 0) -> None:
        super().__init__()
        self.placement, self.parallel = config.effective_norm_placement, config.parallel_residual
        self.attention = registry.get("attention", config.attention)(
            config, window=config.layer_window(index)
        )
        self.feed_forward = registry.get("feed_forward", config.feed_forward)(config)
        self.dropout = nn.Dropout(config.dropout)
        self.make_branch_norms(config, "attention")
        self.make_branch_norms(config, "feed_forward")
        if index == 0 and not config.first_attention_norm:
            self.attention_norm = nn.Identity()

    def forward(
        self, x: Tensor, context: AttentionContext, *, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """See `MultiHeadAttention.forward` for the arguments."""

        def attention(y: Tensor) -> Tensor:
            out: Tensor = self.attention(y, context, cache=cache, layer=layer)
            return out

        if self.parallel:
            read = self.sublayer_output(x, "attention", attention)
            return x + read + self.sublayer_output(x, "feed_forward", self.feed_forward)
        x = self.residual_branch(x, "attention", attention)
        return self.residual_branch(x, "feed_forward", self.feed_forward)

    def make_branch_norms(self, config: TransformerConfig, name: str) -> None:
        """Makes the norms of a branch."""
        if self.placement != "output":
            self.add_module(f"{name}_norm", make_norm(config))
        if self.placement in ("both", "output"):
            self.add_module(f"{name}_out_norm", make_norm(config))

    def sublayer_output(self, x: Tensor, name: str, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """What a sub-layer adds to x, after its dropout and the norms of `name` in its branch."""
        if self.placement in ("pre", "both"):
            x = getattr(self, f"{name}_norm")(x)
        out: Tensor = sublayer(x)
        if self.placement in ("both", "output"):
            out = getattr(self, f"{name}_out_norm")(out)
        out = self.dropout(out)
        return out

    def residual_branch(self, x: Tensor, name: str, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """x with what a sub-layer adds to it."""
        x = x + self.sublayer_output(x, name, sublayer)
        if self.placement == "post":
            x = getattr(self, f"{name}_norm")(x)
        return x


class DecoderLayer(EncoderLayer):
    """A layer that also reads the encoded source, between its attention and its feed-forward."""

    def __init__(self, config: TransformerConfig, index: int = 0) -> None:
        super().__init__(config, index)
        self.cross_attention = CrossAttention(config)
        self.make_branch_norms(config, "cross_attention")

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        context: AttentionContext,
        *,
        cache: KVCache | None = None,
        layer: int = 0,
        source: AttentionContext,
        memory: Tensor,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D].

        Args:
            x, context, cache, layer: see `MultiHeadAttention.forward`.
            source: mask of the source.
            memory: the encoded source, [B, S, D]; the layer itself makes keys and values of it, so
                that a layer whose weights are sharded is called as a whole.
        """

        def attention(y: Tensor) -> Tensor:
            out: Tensor = self.attention(y, context, cache=cache, layer=layer)
            return out

        def cross_attention(y: Tensor) -> Tensor:
            out: Tensor = self.cross_attention(y, source, memory=memory, cache=cache, layer=layer)
            return out

        x = self.residual_branch(x, "attention", attention)
        x = self.residual_branch(x, "cross_attention", cross_attention)
        return self.residual_branch(x, "feed_forward", self.feed_forward)
