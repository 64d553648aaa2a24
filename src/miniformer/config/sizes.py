"""Parameter, FLOP and cache-byte counts from a config alone; equal to the built model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miniformer.config.model_config import TransformerConfig


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _norm(config: TransformerConfig) -> int:
    biased = config.norm == "layernorm" and config.bias
    return config.d_model * (2 if biased else 1)


def _layer_matrices(config: TransformerConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of each linear map in one layer."""
    width, heads = config.d_model, config.n_heads * config.head_width
    kv = config.kv_heads * config.head_width
    up = [(width, config.ff_width)] * (2 if config.gated else 1)
    return [(width, heads), (width, kv), (width, kv), (heads, width), *up, (config.ff_width, width)]


def _head_width(config: TransformerConfig) -> int:
    return config.output_dim or config.vocab_size


def num_params(config: TransformerConfig) -> int:
    layer = sum(_linear(i, o, config.bias) for i, o in _layer_matrices(config)) + 2 * _norm(config)
    if config.input_dim is None:
        embedding = config.vocab_size * config.d_model
    else:
        embedding = _linear(config.input_dim, config.d_model, config.bias)
    head_bias = config.output_dim is not None and config.bias
    head = 0 if config.head_tied else _linear(config.d_model, _head_width(config), head_bias)
    final_norm = _norm(config) if config.pre_norm else 0
    return embedding + config.n_layers * layer + final_norm + head


def flops_per_token(config: TransformerConfig, seq_len: int) -> int:
    """Matrix products only, two operations a multiply-add (Kaplan et al. 2020, PaLM).

    Attention counts every query-key pair a mask lets through: all for an encoder, half for a causal
    model.
    """
    matrices = sum(i * o for i, o in _layer_matrices(config))
    keys = (seq_len + 1) / 2 if config.causal else seq_len
    attention = 2 * keys * config.n_heads * config.head_width
    projection = (config.input_dim or 0) * config.d_model
    head = config.d_model * _head_width(config)
    return round(2 * (config.n_layers * (matrices + attention) + projection + head))


def cache_bytes(
    config: TransformerConfig, batch_size: int, seq_len: int, bytes_per_value: int
) -> int:
    per_token = 2 * config.n_layers * config.kv_heads * config.head_width * bytes_per_value
    return batch_size * seq_len * per_token
