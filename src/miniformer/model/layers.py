"""One Transformer layer: attention and feed-forward, each in a residual branch.

pre_norm (Xiong et al. 2020):  x + dropout(sublayer(norm(x)))
post-norm (Vaswani et al. 2017):  norm(x + dropout(sublayer(x)))
"""

from __future__ import annotations

from torch import Tensor, nn

from miniformer.config import TransformerConfig
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.cache import KVCache
from miniformer.model.feed_forward import FeedForward
from miniformer.model.masks import AttentionMask
from miniformer.model.norm import make_norm
from miniformer.model.position import Rotation


class EncoderLayer(nn.Module):
    """A layer of an encoder or, with a causal mask, of a decoder: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = make_norm(
            config.norm, config.d_model, eps=config.norm_eps, bias=config.bias
        )
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = make_norm(
            config.norm, config.d_model, eps=config.norm_eps, bias=config.bias
        )
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        *,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """See `MultiHeadAttention.forward` for the arguments."""
        places = {"rotation": rotation, "cache": cache, "layer": layer}
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask, **places))
            out: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
            return out
        x = self.attention_norm(x + self.dropout(self.attention(x, mask, **places)))
        out = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return out
