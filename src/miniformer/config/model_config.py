"""TransformerConfig: everything that decides a model's weights and arithmetic, and no more."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniformer import registry
from miniformer.config import estimates, model_checks
from miniformer.config.strict import StrictConfig, option

NORM_PLACEMENTS = ("pre", "post", "both", "output")
HEAD_TYPES = ("linear", "masked_lm", "dense_tanh", "dense_relu")


@dataclasses.dataclass(frozen=True)
class TransformerConfig(StrictConfig):
    """The shape of a Transformer and the parts it is made of.

    Args:
        vocab_size: number of token ids the model knows.
        source_vocab_size: the same of a Seq2SeqTransformer's sources, which then have an embedding
            of their own; null: sources and targets share one vocabulary and its embedding.
        d_model: width of the residual stream.
        n_heads: query heads of each attention layer.
        n_layers: number of layers; of the encoder, in a Seq2SeqTransformer.
        d_ff: inner width of the feed-forward; null: 4 * d_model, or for gated activations 8/3 *
            d_model rounded up to a multiple of 64.
        dropout: probability of zeroing an element of the embedding and of each sub-layer's output
            (Vaswani et al. 2017, section 5.4) while training.
        token_dropout: probability of zeroing the whole embedding of a token, or a whole feature
            vector, while training (Iyyer et al. 2015, section 3.1).
        activation: gelu, gelu_tanh, relu, silu, or gated (Shazeer 2020): swiglu, geglu, geglu_tanh,
            reglu.
        position: rotary (Su et al. 2021), learned, sinusoidal (Vaswani et al. 2017),
            sinusoidal_fairseq (Ott et al. 2019), alibi (Press et al. 2021), relative (T5's buckets,
            Raffel et al. 2019) or none.
        rotary_pct: share of each head that is rotated, in (0, 1]; rounded down to whole pairs.
        rotary_base: wavelength base of the rotation.
        rotary_base_local: the base in layers with a sliding window; null: rotary_base.
        rotary_scaling: how the rotation is stretched to longer texts: {"type": linear, dynamic,
            yarn, longrope or llama3, "factor": ..., ...}; see `miniformer.model.rotary_scaling`.
        relative_buckets: rows of T5's table of distances.
        relative_max_distance: distance from which all are alike to it.
        pre_norm: true: normalise what enters a sub-layer; false: what leaves it (Xiong et al.
            2020).
        norm_placement: null: as pre_norm says; both: what enters a sub-layer and what it adds
            (Gemma 2); output: only what it adds (OLMo 2); pre and post: pre_norm in words.
        first_attention_norm: whether the first layer normalises what enters its attention
            (ModernBERT does not: its embedding is normalised already).
        parallel_residual: attention and feed-forward read the same input (GPT-J, GPT-NeoX).
        norm: layernorm, rmsnorm, or zero_centered_rmsnorm (Gemma), whose weight is added to one.
        norm_eps: added to the variance before its root is taken.
        max_seq_len: longest sequence the model accepts, prompt and continuation together.
        n_kv_heads: key-value heads; null: n_heads (multi-head), 1: multi-query, between:
            grouped-query.
        head_dim: width of one head; null: d_model / n_heads.
        bias: whether linear layers and layernorm have a bias.
        attention_bias: whether the four linear layers of attention do; null: as bias.
        qkv_bias: whether the maps to queries, keys and values do; null: as attention_bias (Qwen 2:
            only they do).
        feed_forward_bias: whether the linear layers of the feed-forward do; null: as bias.
        norm_bias: whether layernorm does; null: as bias.
        qk_norm: normalises queries and keys: head (each head, Qwen 3), projection (all heads at
            once, OLMo 2); null: neither.
        sliding_window: tokens that a causal query sees, itself included; an encoder's query sees
            half as many on each side. Null: all.
        window_pattern: which layers have the window: letters that repeat over the layers, L local,
            G global, such as LLG; null: every layer.
        logit_softcap: attention scores s become c * tanh(s / c) (Gemma 2); null: they stay.
        final_softcap: the same for logits over the vocabulary.
        attention_sinks: a learnt logit for each head takes part in every softmax and adds nothing,
            so that a head may attend to nothing (gpt-oss).
        attention_scale: factor on query-key products; null: 1 / sqrt(head_dim).
        attention: the attention module's registered name.
        feed_forward: the feed-forward module's registered name.
        causal: true: a position sees itself and earlier ones only (a decoder-only language model).
        embedding_norm: normalises the embedding before the first layer.
        embedding_scale: factor on token embeddings; null: 1.
        token_types: number of token types, whose embedding is added (BERT); null: none.
        tie_embeddings: the vocabulary head shares the token embedding's weight, where both exist.
        head: linear; or with a dense layer before it, and then an activation and a norm (masked_lm,
            BERT), tanh (dense_tanh, BERT's pooler) or relu (dense_relu, DistilBERT's).
        head_activation: the activation of a masked_lm head; null: gelu.
        head_bias: whether the vocabulary head has a bias.
        output_bias: whether the head to `output_dim` outputs has one; null: as bias.
        logit_scale: factor on what the vocabulary head reads (T5: d_model ** -0.5); null: 1.
        input_dim: null: inputs are token ids; else they are float vectors of this width.
        output_dim: null: logits over the vocabulary; else a head of this width at each position.
        pooling: how a sequence becomes one vector: mean, max, first or last of its real positions,
            or the mean of several of these, such as mean+max.
        n_decoder_layers: layers of a Seq2SeqTransformer's decoder; null: n_layers.
    """

    vocab_size: int = option(10000, low=1)
    source_vocab_size: int | None = option(None, low=1)
    d_model: int = option(256, low=1)
    n_heads: int = option(8, low=1)
    n_layers: int = option(4, low=1)
    d_ff: int | None = option(None, low=1)
    dropout: float = option(0.1, low=0.0, high=0.99)
    token_dropout: float = option(0.0, low=0.0, high=0.99)
    activation: str = option("gelu", kind="activation,gated_activation")
    position: str = option("rotary", kind="position")
    rotary_pct: float = option(1.0, low=0.0, high=1.0)
    rotary_base: float = option(10000.0, low=1.0)
    rotary_base_local: float | None = option(None, low=1.0)
    rotary_scaling: dict[str, Any] | None = None
    relative_buckets: int = option(32, low=4)
    relative_max_distance: int = option(128, low=4)
    pre_norm: bool = True
    norm_placement: str | None = option(None, choices=NORM_PLACEMENTS)
    first_attention_norm: bool = True
    parallel_residual: bool = False
    norm: str = option("layernorm", kind="norm")
    norm_eps: float = option(1e-5, above=0.0)
    max_seq_len: int = option(1024, low=1)
    n_kv_heads: int | None = option(None, low=1)
    head_dim: int | None = option(None, low=1)
    bias: bool = True
    attention_bias: bool | None = None
    qkv_bias: bool | None = None
    feed_forward_bias: bool | None = None
    norm_bias: bool | None = None
    qk_norm: str | None = option(None, choices=("head", "projection"))
    sliding_window: int | None = option(None, low=1)
    window_pattern: str | None = None
    logit_softcap: float | None = option(None, low=1e-3)
    final_softcap: float | None = option(None, low=1e-3)
    attention_sinks: bool = False
    attention_scale: float | None = option(None, above=0.0)
    attention: str = option("standard", kind="attention")
    feed_forward: str = option("standard", kind="feed_forward")
    causal: bool = False
    embedding_norm: bool = False
    embedding_scale: float | None = option(None, above=0.0)
    token_types: int | None = option(None, low=1)
    tie_embeddings: bool = True
    head: str = option("linear", choices=HEAD_TYPES)
    head_activation: str | None = option(None, kind="activation")
    head_bias: bool = False
    output_bias: bool | None = None
    logit_scale: float | None = option(None, above=0.0)
    input_dim: int | None = option(None, low=1)
    output_dim: int | None = option(None, low=1)
    pooling: str = "mean"
    n_decoder_layers: int | None = option(None, low=1)

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        return model_checks.find_problems(self)

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
    def is_gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.activation in registry.names("gated_activation")

    @property
    def ff_width(self) -> int:
        """Inner width of the feed-forward."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 192) * 64 if self.is_gated else 4 * self.d_model

    @property
    def effective_norm_placement(self) -> str:
        """Where the norms are: pre, post, both or output."""
        return self.norm_placement or ("pre" if self.pre_norm else "post")

    @property
    def has_attention_bias(self) -> bool:
        """Whether attention's map to the residual stream has a bias."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the maps to queries, keys and values have a bias."""
        return self.has_attention_bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_feed_forward_bias(self) -> bool:
        """Whether the linear layers of the feed-forward have a bias."""
        return self.bias if self.feed_forward_bias is None else self.feed_forward_bias

    @property
    def has_norm_bias(self) -> bool:
        """Whether norms that can have a bias do."""
        return self.bias if self.norm_bias is None else self.norm_bias

    @property
    def is_head_tied(self) -> bool:
        """Whether the output head is the token embedding itself."""
        return self.tie_embeddings and self.input_dim is None and self.output_dim is None

    @property
    def has_head_bias(self) -> bool:
        """Whether the head has a bias."""
        if self.output_dim is None:
            return self.head_bias
        return self.bias if self.output_bias is None else self.output_bias

    @property
    def decoder_layers(self) -> int:
        """Layers of a Seq2SeqTransformer's decoder."""
        return self.n_decoder_layers or self.n_layers

    def layer_window(self, layer: int) -> int | None:
        """The sliding window of a layer; None: it sees everything."""
        pattern = self.window_pattern or "L"
        return self.sliding_window if pattern[layer % len(pattern)] == "L" else None

    def num_params(self, *, seq2seq: bool = False) -> int:
        """Parameters of the built model, a tied weight counted once.

        Args:
            seq2seq: of a Seq2SeqTransformer.
        """
        return estimates.num_params(self, seq2seq=seq2seq)

    def flops_per_token(self, seq_len: int | None = None, *, seq2seq: bool = False) -> int:
        """Floating-point operations of a forward pass per token; training takes three times that.

        Args:
            seq_len: tokens in the sequence; null: `max_seq_len`.
            seq2seq: of a Seq2SeqTransformer, per pair of a source and a target token, both texts
                `seq_len` long.

        Raises:
            ConfigError: `seq_len` is below 1.
        """
        length = self.max_seq_len if seq_len is None else seq_len
        return estimates.flops_per_token(self, length, seq2seq=seq2seq)

    def cache_bytes(
        self,
        batch_size: int,
        seq_len: int,
        bytes_per_value: int = 4,
        *,
        kind: str = "full",
        source_len: int | None = None,
    ) -> int:
        """Bytes of keys and values that a cache of `batch_size` x `seq_len` tokens holds.

        Args:
            batch_size: rows.
            seq_len: columns.
            bytes_per_value: 4 for float32, 2 for bfloat16; kind int8 has its own.
            kind: the cache's: full, window or int8 (see `miniformer.model.cache.kv_cache`).
            source_len: of a Seq2SeqTransformer, the length of the sources, whose projected keys and
                values are kept too; null: of a Transformer.

        Raises:
            ConfigError: a size is below 1, or there is no such kind.
        """
        return estimates.cache_bytes(
            self, batch_size, seq_len, bytes_per_value, kind=kind, source_len=source_len
        )
