"""TransformerConfig: everything that decides a model's weights and arithmetic, and no more."""

from __future__ import annotations

import dataclasses
import math

from miniformer import registry
from miniformer.config import sizes
from miniformer.config.strict import StrictConfig, option


def _up(value: float) -> float:
    """Three digits of it, never less than it."""
    return math.ceil(value * 1000) / 1000


@dataclasses.dataclass(frozen=True)
class TransformerConfig(StrictConfig):
    """The shape of a Transformer and the parts it is made of.

    Args:
        vocab_size: number of token ids the model knows.
        d_model: width of the residual stream.
        n_heads: query heads of each attention layer.
        n_layers: number of layers.
        d_ff: inner width of the feed-forward; null: 4 * d_model, or for gated activations 8/3 *
            d_model rounded up to a multiple of 64.
        dropout: probability of zeroing an element of the embedding and of each sub-layer's output
            (Vaswani et al. 2017, section 5.4) while training.
        activation: gelu, gelu_tanh, relu, silu, or gated (Shazeer 2020): swiglu, geglu, reglu.
        position: rotary (Su et al. 2021) or none.
        rotary_pct: share of each head that is rotated, in (0, 1]; rounded down to whole pairs.
        rotary_base: wavelength base of the rotation.
        pre_norm: true: normalise what enters a sub-layer; false: what leaves it (Xiong et al.
            2020).
        norm: layernorm or rmsnorm.
        norm_eps: added to the variance before its root is taken.
        max_seq_len: longest sequence the model accepts, prompt and continuation together.
        n_kv_heads: key-value heads; null: n_heads (multi-head), 1: multi-query, between:
            grouped-query.
        head_dim: width of one head; null: d_model / n_heads.
        bias: whether linear layers and layernorm have a bias.
        causal: true: a position sees itself and earlier ones only (a decoder-only language model).
        tie_embeddings: the vocabulary head shares the token embedding's weight, where both exist.
        input_dim: null: inputs are token ids; else they are float vectors of this width.
        output_dim: null: logits over the vocabulary; else a head of this width at each position.
    """

    vocab_size: int = option(10000, low=1)
    d_model: int = option(256, low=1)
    n_heads: int = option(8, low=1)
    n_layers: int = option(4, low=1)
    d_ff: int | None = option(None, low=1)
    dropout: float = option(0.1, low=0.0, high=0.99)
    activation: str = option("gelu", of="activation,gated_activation")
    position: str = option("rotary", of="position")
    rotary_pct: float = option(1.0, low=0.0, high=1.0)
    rotary_base: float = option(10000.0, low=1.0)
    pre_norm: bool = True
    norm: str = option("layernorm", of="norm")
    norm_eps: float = option(1e-5, low=0.0)
    max_seq_len: int = option(1024, low=1)
    n_kv_heads: int | None = option(None, low=1)
    head_dim: int | None = option(None, low=1)
    bias: bool = True
    causal: bool = False
    tie_embeddings: bool = True
    input_dim: int | None = option(None, low=1)
    output_dim: int | None = option(None, low=1)

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        problems = []
        if self.head_dim is None and self.d_model % self.n_heads:
            problems.append(
                f"d_model={self.d_model} is not divisible by n_heads={self.n_heads}; "
                f"use d_model={-(-self.d_model // self.n_heads) * self.n_heads}, "
                "another n_heads, or set head_dim"
            )
        elif self.position == "rotary" and self.rotary_dim == 0:
            problems.append(
                f"rotary_pct={self.rotary_pct} rotates no pair of a head of {self.head_width}; "
                + (f"use at least {_up(2 / self.head_width)}, " if self.head_width > 1 else "use ")
                + "a wider head, or position='none'"
            )
        if self.position != "rotary":
            problems += [
                f"{name}={getattr(self, name)} has no effect with position={self.position!r}; "
                "leave it out"
                for name, default in (("rotary_pct", 1.0), ("rotary_base", 10000.0))
                if getattr(self, name) != default
            ]
        if self.n_heads % self.kv_heads:
            problems.append(
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}; "
                "each key-value head serves a whole number of query heads"
            )
        return problems

    @property
    def head_width(self) -> int:
        """Width E of one head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number K of key-value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def rotary_dim(self) -> int:
        """How many elements of each head are rotated: an even number."""
        return 2 * int(self.head_width * self.rotary_pct / 2)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.activation in registry.names("gated_activation")

    @property
    def ff_width(self) -> int:
        """Inner width of the feed-forward."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 192) * 64 if self.gated else 4 * self.d_model

    @property
    def head_tied(self) -> bool:
        """Whether the output head is the token embedding itself."""
        return self.tie_embeddings and self.input_dim is None and self.output_dim is None

    def num_params(self) -> int:
        """Parameters of the built model, a tied weight counted once."""
        return sizes.num_params(self)

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """Floating-point operations of a forward pass per token; training takes three times that.

        Args:
            seq_len: tokens in the sequence; null: `max_seq_len`.
        """
        return sizes.flops_per_token(self, seq_len or self.max_seq_len)

    def cache_bytes(self, batch_size: int, seq_len: int, bytes_per_value: int = 4) -> int:
        """Bytes of keys and values that a cache of `batch_size` x `seq_len` tokens holds."""
        return sizes.cache_bytes(self, batch_size, seq_len, bytes_per_value)
