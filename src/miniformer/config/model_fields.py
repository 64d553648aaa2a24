"""Settings that determine a model's weights and arithmetic, and values derived from them."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniformer import registry
from miniformer.config.strict import StrictConfig, option

NORM_PLACEMENTS = ("pre", "post", "both", "output")
HEAD_TYPES = ("linear", "masked_lm", "dense_tanh", "dense_relu")


@dataclasses.dataclass(frozen=True)
class ModelFields(StrictConfig):
    """Fields of `TransformerConfig`: shape and components of a Transformer.

    Args:
        vocab_size: number of token ids.
        source_vocab_size: vocabulary size of a Seq2SeqTransformer's sources, which then have their
            own embedding; null: sources and targets share one vocabulary and its embedding.
        d_model: width of the residual stream.
        n_heads: query heads of each attention layer.
        n_layers: number of layers; in a Seq2SeqTransformer, encoder layers.
        d_ff: inner width of the feed-forward; null: 4 * d_model, or for gated activations 8/3 *
            d_model rounded up to a multiple of 64.
        dropout: dropout probability of the embedding and of each sub-layer's output (Vaswani et al.
            2017, section 5.4).
        token_dropout: probability of zeroing the whole embedding of a token, or a whole feature
            vector, in training (Iyyer et al. 2015, section 3.1).
        activation: gelu, gelu_tanh, relu, silu, or gated (Shazeer 2020): swiglu, geglu, geglu_tanh,
            reglu.
        position: rotary (Su et al. 2021), learned, sinusoidal (Vaswani et al. 2017),
            sinusoidal_fairseq (Ott et al. 2019), alibi (Press et al. 2021), t5_relative (T5's
            buckets, Raffel et al. 2019) or none.
        rotary_pct: rotated fraction of each head, in (0, 1]; rounded down to whole pairs.
        rotary_base: wavelength base of the rotation.
        rotary_base_local: base in layers with a sliding window; null: rotary_base.
        rotary_scaling: RoPE scaling for longer sequences: {"type": linear, dynamic, yarn, longrope
            or llama3, "factor": ..., ...}; see `miniformer.model.rotary_scaling`.
        relative_buckets: number of T5's distance buckets.
        relative_max_distance: all larger distances share the last bucket.
        pre_norm: true: normalize the input of a sub-layer; false: its output plus the residual
            (Xiong et al. 2020).
        norm_placement: null: by pre_norm; both: a sub-layer's input and its output before the
            residual addition (Gemma 2); output: only the latter (OLMo 2); pre or post: same as
            pre_norm.
        first_attention_norm: whether the first layer normalizes its attention's input (not in
            ModernBERT, whose embedding is normalized).
        parallel_residual: attention and feed-forward read the same input (GPT-J, GPT-NeoX).
        norm: layernorm, rmsnorm, or zero_centered_rmsnorm (Gemma), whose weight is added to one.
        norm_eps: epsilon added to the variance.
        max_seq_len: longest sequence that the model accepts, prompt and continuation together.
        n_kv_heads: key-value heads; null: n_heads (multi-head), 1: multi-query, between:
            grouped-query.
        head_dim: width of one head; null: d_model / n_heads.
        bias: whether linear layers and layernorm have a bias.
        attention_bias: bias of the four linear layers of attention; null: as bias.
        qkv_bias: bias of the query, key and value projections; null: as attention_bias (Qwen 2 has
            only these biases).
        feed_forward_bias: bias of the linear layers of the feed-forward; null: as bias.
        norm_bias: bias of layernorm; null: as bias.
        qk_norm: normalization of queries and keys: head (each head, Qwen 3) or projection (all
            heads at once, OLMo 2); null: none.
        sliding_window: tokens visible to a causal query, itself included; half as many on each side
            in an encoder. Null: all.
        window_pattern: layers with the window: letters that repeat over the layers, L local, G
            global, such as LLG; null: every layer.
        logit_softcap: cap c of attention scores s, which become c * tanh(s / c) (Gemma 2); null:
            none.
        final_softcap: the same for logits over the vocabulary.
        attention_sinks: adds a learned logit per head to every softmax, without a value, so that a
            head may attend to nothing (gpt-oss).
        attention_scale: factor of query-key products; null: 1 / sqrt(head_dim).
        attention: registered name of the attention module.
        feed_forward: registered name of the feed-forward module.
        causal: true: a position attends to itself and earlier ones only (decoder-only language
            model).
        embedding_norm: normalizes the embedding before the first layer.
        embedding_scale: factor of token embeddings; null: 1.
        token_types: number of token types, whose embedding is added (BERT); null: none.
        tie_embeddings: the vocabulary head shares the token embedding's weight, if both exist.
        head: linear; or a dense layer before it with activation and norm (masked_lm, BERT), tanh
            (dense_tanh, BERT's pooler) or relu (dense_relu, DistilBERT).
        head_activation: activation of a masked_lm head; null: gelu.
        head_bias: bias of the vocabulary head.
        output_bias: bias of the head to `output_dim` outputs; null: as bias.
        logit_scale: factor of the vocabulary head's input (T5: d_model ** -0.5); null: 1.
        input_dim: width of float input vectors; null: inputs are token ids. In a
            Seq2SeqTransformer, of the sources.
        input: registered part that turns inputs into vectors of width d_model, or an object with
            its name as type, and options; null: tokens, or with input_dim features.
        output_dim: width of a head at each position; null: logits over the vocabulary.
        ordered_outputs: the outputs are logits of P(class > k) for ordered classes: one score for
            all, minus thresholds that ascend by construction (McCullagh 1980).
        pooling: reduction of a sequence to one vector: mean, max, first or last of its real
            positions, or the mean of several of these, such as mean+max.
        n_decoder_layers: decoder layers of a Seq2SeqTransformer; null: n_layers.
        wide_head: features of a linear head in addition to the Transformer, whose outputs are added
            in evaluation: a list of groups such as {"type": "ngrams", "size": 5000, "length": 3};
            see `miniformer.model.wide_head.head`; null: none.
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
    input: str | dict[str, Any] | None = option(None, kind="input")
    output_dim: int | None = option(None, low=1)
    ordered_outputs: bool = False
    pooling: str = "mean"
    n_decoder_layers: int | None = option(None, low=1)
    wide_head: list[dict[str, Any]] | None = None

    @property
    def head_width(self) -> int:
        """Width E of one head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number K of key-value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def input_type(self) -> str:
        """Name of the input part: tokens, features or another registered one."""
        if self.input is None:
            return "tokens" if self.input_dim is None else "features"
        return self.input["type"] if isinstance(self.input, dict) else self.input

    @property
    def rotary_dim(self) -> int:
        """Number of rotated elements of each head, which is even."""
        return 2 * int(self.head_width * self.rotary_pct / 2)

    @property
    def is_gated(self) -> bool:
        """True for a feed-forward with a gate."""
        return self.activation in registry.names("gated_activation")

    @property
    def ff_width(self) -> int:
        """Inner width of the feed-forward."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 192) * 64 if self.is_gated else 4 * self.d_model

    @property
    def effective_norm_placement(self) -> str:
        """Norm placement: pre, post, both or output."""
        return self.norm_placement or ("pre" if self.pre_norm else "post")

    @property
    def has_attention_bias(self) -> bool:
        """True if attention's output projection has a bias."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def has_qkv_bias(self) -> bool:
        """True if the query, key and value projections have a bias."""
        return self.has_attention_bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_feed_forward_bias(self) -> bool:
        """True if the linear layers of the feed-forward have a bias."""
        return self.bias if self.feed_forward_bias is None else self.feed_forward_bias

    @property
    def has_norm_bias(self) -> bool:
        """True if layernorm has a bias."""
        return self.bias if self.norm_bias is None else self.norm_bias

    @property
    def is_head_tied(self) -> bool:
        """True if the output head of a Transformer shares the token embedding's weight."""
        return self.tie_embeddings and self.input_type == "tokens" and self.output_dim is None

    @property
    def has_head_bias(self) -> bool:
        """True if the head has a bias."""
        if self.output_dim is None:
            return self.head_bias
        if self.ordered_outputs:  # the thresholds
            return True
        return self.bias if self.output_bias is None else self.output_bias

    @property
    def decoder_layers(self) -> int:
        """Decoder layers of a Seq2SeqTransformer."""
        return self.n_decoder_layers or self.n_layers

    def layer_window(self, layer: int) -> int | None:
        """Sliding window of a layer; None: no window."""
        pattern = self.window_pattern or "L"
        return self.sliding_window if pattern[layer % len(pattern)] == "L" else None
