"""Counts of parameters and FLOPs from a config; equal to those of the built model."""

from __future__ import annotations

from miniformer.config.model_fields import ModelFields

MatrixShape = tuple[int, int, bool]  # inputs, outputs, has a bias


def _linear_params(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _norm_params(config: ModelFields, width: int | None = None) -> int:
    biased = config.norm == "layernorm" and config.has_norm_bias
    return (width or config.d_model) * (2 if biased else 1)


def _attention_matrices(config: ModelFields) -> list[MatrixShape]:
    """Linear layers of one attention: query, key, value, output."""
    width, heads = config.d_model, config.n_heads * config.head_width
    kv, bias = config.kv_heads * config.head_width, config.has_qkv_bias
    out = (heads, width, config.has_attention_bias)
    return [(width, heads, bias), (width, kv, bias), (width, kv, bias), out]


def _feed_forward_matrices(config: ModelFields) -> list[MatrixShape]:
    bias = config.has_feed_forward_bias
    up = [(config.d_model, config.ff_width, bias)] * (2 if config.is_gated else 1)
    return [*up, (config.ff_width, config.d_model, bias)]


def _attention_params(config: ModelFields, *, cross: bool = False) -> int:
    count = sum(_linear_params(*matrix) for matrix in _attention_matrices(config))
    if config.qk_norm == "head":
        count += 2 * _norm_params(config, config.head_width)
    elif config.qk_norm == "projection":
        count += _norm_params(config, config.n_heads * config.head_width)
        count += _norm_params(config, config.kv_heads * config.head_width)
    return count + (config.n_heads if config.attention_sinks and not cross else 0)


def _stack_params(config: ModelFields, layers: int, *, cross: bool = False) -> int:
    """Parameters of the layers, the position embedding and the norms around the layers."""
    sublayers = 3 if cross else 2
    norms = (
        sublayers * (2 if config.effective_norm_placement == "both" else 1) * _norm_params(config)
    )
    layer = _attention_params(config) + sum(
        _linear_params(*matrix) for matrix in _feed_forward_matrices(config)
    )
    if cross:
        layer += _attention_params(config, cross=True)
    position = {
        "learned": config.max_seq_len * config.d_model,
        "t5_relative": config.relative_buckets * config.n_heads,
    }.get(config.position, 0)
    outer_norms = config.embedding_norm + (config.effective_norm_placement != "post")
    count = layers * (layer + norms) + position + outer_norms * _norm_params(config)
    return count if config.first_attention_norm else count - _norm_params(config)


def _head_matrices(config: ModelFields) -> list[MatrixShape]:
    """Linear layers of the head; the last one maps to the outputs."""
    last = (config.d_model, config.output_dim or config.vocab_size, config.has_head_bias)
    dense = (config.d_model, config.d_model, config.bias)
    return [last] if config.head == "linear" else [dense, last]


def num_params(config: ModelFields, *, seq2seq: bool = False) -> int:
    if config.input_dim is None:
        count = config.vocab_size * config.d_model
    else:
        count = _linear_params(config.input_dim, config.d_model, config.bias)
    count += (config.token_types or 0) * config.d_model
    count += _stack_params(config, config.n_layers)
    if seq2seq:
        count += _stack_params(config, config.decoder_layers, cross=True)
        count += (config.source_vocab_size or 0) * config.d_model
    count += sum(_linear_params(*matrix) for matrix in _head_matrices(config))
    if config.is_head_tied:
        count -= config.d_model * config.vocab_size
    return count + (_norm_params(config) if config.head == "masked_lm" else 0)


def _mean_visible_keys(config: ModelFields, layer: int, seq_len: float, *, causal: bool) -> float:
    """Visible keys of a query, averaged over the sequence."""
    window = config.layer_window(layer)
    if causal:
        reach = min(window or seq_len, seq_len)
        return reach - reach * (reach - 1) / (2 * seq_len)
    side = seq_len if window is None else min(window // 2, seq_len - 1)
    if side >= seq_len:
        return seq_len
    return 1 + 2 * side - side * (side + 1) / seq_len


def _multiply_adds(*matrices: MatrixShape) -> int:
    """Multiply-adds of linear layers per token."""
    return sum(inputs * outputs for inputs, outputs, _ in matrices)


def _stack_multiply_adds(config: ModelFields, layers: int, length: float, *, causal: bool) -> float:
    """Multiply-adds of a stack per token, without cross-attention."""
    matrices = _multiply_adds(*_attention_matrices(config), *_feed_forward_matrices(config))
    keys = sum(_mean_visible_keys(config, layer, length, causal=causal) for layer in range(layers))
    return layers * matrices + 2 * keys * config.n_heads * config.head_width


def forward_flops(
    config: ModelFields,
    *,
    tokens: float,
    length: float,
    head_tokens: float | None = None,
    target_tokens: float = 0.0,
    target_length: float = 0.0,
) -> float:
    """FLOPs of the matrix products of a forward pass; a multiply-add is two operations.

    Attention counts every query-key pair that the mask allows in rows without padding.

    Args:
        config: model config.
        tokens: input tokens; of an encoder-decoder model, source tokens.
        length: tokens per row.
        head_tokens: positions that the head reads; None: every token, or every target token.
        target_tokens: tokens that the decoder reads; 0: no decoder.
        target_length: target tokens per row.
    """
    count = tokens * _stack_multiply_adds(config, config.n_layers, length, causal=config.causal)
    count += tokens * (config.input_dim or 0) * config.d_model
    if target_tokens:
        layers = config.decoder_layers
        count += target_tokens * _stack_multiply_adds(config, layers, target_length, causal=True)
        # Cross-attention: queries and outputs per target token, keys and values per source token.
        q, k, v, o = _attention_matrices(config)
        pairs = 2 * length * config.n_heads * config.head_width
        count += layers * (
            target_tokens * (_multiply_adds(q, o) + pairs) + tokens * _multiply_adds(k, v)
        )
    if head_tokens is None:
        head_tokens = target_tokens or tokens
    return 2 * (count + head_tokens * _multiply_adds(*_head_matrices(config)))
