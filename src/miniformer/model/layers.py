"""Transformer layers: attention and feed-forward, each in a residual branch.

pre     x + dropout(f(norm(x)))               Xiong et al. 2020, GPT-2
post    norm(x + dropout(f(x)))               Vaswani et al. 2017
both    x + dropout(norm'(f(norm(x))))        Gemma 2
output  x + dropout(norm'(f(x)))              OLMo 2
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig
from miniformer.model.attention import AttentionContext, CrossAttention
from miniformer.model.cache.protocol import PassCache
from miniformer.model.norm import make_norm


class EncoderLayer(nn.Module):
    """Layer of an encoder or, with a causal mask, of a decoder-only model: [B, T, D] -> [B, T, D].

    Args:
        config: the model's config.
        index: index of the layer, from 0; determines its sliding window.
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
        self,
        x: Tensor,
        context: AttentionContext,
        *,
        cache: PassCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """See `MultiHeadAttention.forward` for the arguments."""
        attention = partial(self._attend, context, cache, layer)
        if self.parallel:
            attended = self.sublayer_output(x, "attention", attention)
            return x + attended + self.sublayer_output(x, "feed_forward", self.feed_forward)
        x = self.residual_branch(x, "attention", attention)
        return self.residual_branch(x, "feed_forward", self.feed_forward)

    def _attend(
        self, context: AttentionContext, cache: PassCache | None, layer: int, x: Tensor
    ) -> Tensor:
        out: Tensor = self.attention(x, context, cache=cache, layer=layer)
        return out

    def make_branch_norms(self, config: TransformerConfig, name: str) -> None:
        """Makes the norms of a residual branch."""
        if self.placement != "output":
            self.add_module(f"{name}_norm", make_norm(config))
        if self.placement in ("both", "output"):
            self.add_module(f"{name}_out_norm", make_norm(config))

    def sublayer_output(self, x: Tensor, name: str, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Computes a residual branch: the sub-layer with the norms of `name`, then dropout."""
        if self.placement in ("pre", "both"):
            x = getattr(self, f"{name}_norm")(x)
        out: Tensor = sublayer(x)
        if self.placement in ("both", "output"):
            out = getattr(self, f"{name}_out_norm")(out)
        out = self.dropout(out)
        return out

    def residual_branch(self, x: Tensor, name: str, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Adds the output of a residual branch to x."""
        x = x + self.sublayer_output(x, name, sublayer)
        if self.placement == "post":
            x = getattr(self, f"{name}_norm")(x)
        return x


class DecoderLayer(EncoderLayer):
    """Layer with cross-attention to the source between self-attention and feed-forward."""

    def __init__(self, config: TransformerConfig, index: int = 0) -> None:
        super().__init__(config, index)
        self.cross_attention = CrossAttention(config)
        self.make_branch_norms(config, "cross_attention")

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        context: AttentionContext,
        *,
        cache: PassCache | None = None,
        layer: int = 0,
        source: AttentionContext,
        memory: Tensor,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D].

        Args:
            x, context, cache, layer: see `MultiHeadAttention.forward`.
            source: mask of the source.
            memory: the encoded source, [B, S, D]. The layer itself projects it to keys and values,
                since sharded weights are available only while a layer is called.
        """
        cross_attention = partial(
            self.cross_attention, context=source, memory=memory, cache=cache, layer=layer
        )
        x = self.residual_branch(x, "attention", partial(self._attend, context, cache, layer))
        x = self.residual_branch(x, "cross_attention", cross_attention)
        return self.residual_branch(x, "feed_forward", self.feed_forward)
