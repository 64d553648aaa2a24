"""Llama and decoders with its layout."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniformer.config import TransformerConfig
from miniformer.interop.hf.attention import (
    read_dual_rope,
    read_rope,
    read_sliding_window,
    write_dual_rope,
    write_rope,
    write_sliding_window,
)
from miniformer.interop.hf.configs import Config, ConfigKey, Family, Reader, Writer
from miniformer.interop.hf.families.tables import (
    GATE_UP,
    GATED_ACTIVATIONS,
    QKV,
    common_keys,
    decoder_classes,
    token_ids,
)
from miniformer.interop.hf.weights import STACKED, NameTable

_LLAMA_LAYER: dict[Any, Any] = {
    **{f"attention.{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"feed_forward.{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}
_SANDWICH_LAYER = {
    **_LLAMA_LAYER,
    "attention_out_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_out_norm": "post_feedforward_layernorm",
}


def _llama_keys(
    *,
    eps: float,
    max_seq_len: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    activation_key: str = "hidden_act",
    tie_embeddings: bool = False,
) -> tuple[ConfigKey, ...]:
    activation = "gelu_pytorch_tanh" if tie_embeddings else "silu"
    return (
        *common_keys(max_seq_len, tie_embeddings=tie_embeddings),
        ConfigKey("num_key_value_heads", "n_kv_heads", kv_heads, nullable=True),
        ConfigKey("head_dim", "head_dim", head_dim, nullable=True),
        ConfigKey("rms_norm_eps", "norm_eps", eps),
        ConfigKey(activation_key, "activation", activation, GATED_ACTIVATIONS),
    )


_ATTENTION_BIAS = ConfigKey("attention_bias", "attention_bias", False)


def _no_dropout(config: Config, fields: Config) -> None:
    fields["dropout"] = 0.0


def _llama_family(
    preset: str,
    name: str,
    *,
    read: tuple[Reader, ...] = (),
    write: tuple[Writer, ...] = (),
    partial_rotary: bool = False,
    layer_weights: NameTable = _LLAMA_LAYER,
    **family_fields: Any,
) -> Family:
    return Family(
        preset=preset,
        model_type=preset,
        model_classes=decoder_classes(f"{name}ForCausalLM", name),
        weights={"embedding": "model.embed_tokens", "final_norm": "model.norm"},
        layer_prefix="model.layers.{}.",
        layer_weights=layer_weights,
        read=(_no_dropout, *read, read_rope(allow_partial=partial_rotary)),
        write=(*write, write_rope),
        constants={"attention_dropout": 0.0},
        tied_weights={"lm_head.weight": ("model.embed_tokens.weight",)},
        ignored_suffixes=("rotary_emb.inv_freq",),
        **family_fields,
    )


LLAMA = _llama_family(
    "llama",
    "Llama",
    ids=token_ids(bos=1, eos=2),
    keys=(
        *_llama_keys(eps=1e-6, max_seq_len=2048),
        _ATTENTION_BIAS,
        ConfigKey("mlp_bias", "feed_forward_bias", False),
    ),
)
MISTRAL = _llama_family(
    "mistral",
    "Mistral",
    ids=token_ids(bos=1, eos=2),
    keys=_llama_keys(eps=1e-6, max_seq_len=131072, kv_heads=8),
    read=(read_sliding_window("all", 4096),),
    write=(write_sliding_window("all"),),
)
QWEN2 = _llama_family(
    "qwen2",
    "Qwen2",
    ids=token_ids(),
    keys=_llama_keys(eps=1e-6, max_seq_len=32768, kv_heads=32),
    read=(read_sliding_window("late"),),
    write=(write_sliding_window("late"),),
)
QWEN3 = _llama_family(
    "qwen3",
    "Qwen3",
    ids=token_ids(),
    keys=(*_llama_keys(eps=1e-6, max_seq_len=32768, kv_heads=32, head_dim=128), _ATTENTION_BIAS),
    read=(read_sliding_window("late"),),
    write=(write_sliding_window("late"),),
)
OLMO2 = _llama_family(
    "olmo2",
    "Olmo2",
    ids=token_ids(eos=50279, pad=1),
    keys=(*_llama_keys(eps=1e-5, max_seq_len=2048), _ATTENTION_BIAS),
    layer_weights={
        **_LLAMA_LAYER,
        "attention_out_norm": "post_attention_layernorm",
        "feed_forward_out_norm": "post_feedforward_layernorm",
    },
)
PHI3 = _llama_family(
    "phi3",
    "Phi3",
    partial_rotary=True,
    ids=token_ids(bos=1, eos=32000, pad=32000),
    keys=(*_llama_keys(eps=1e-5, max_seq_len=4096), ConfigKey("resid_pdrop", "dropout", 0.0)),
    layer_weights={
        **{k: v for k, v in _LLAMA_LAYER.items() if "_proj" not in k},
        QKV: ("self_attn.qkv_proj", STACKED),
        "attention.o_proj": "self_attn.o_proj",
        GATE_UP: ("mlp.gate_up_proj", STACKED),
        "feed_forward.down_proj": "mlp.down_proj",
    },
    read=(read_sliding_window("all"),),
    write=(write_sliding_window("all"),),
)


def _gemma_scale(config: Config, fields: Config) -> None:
    fields["embedding_scale"] = fields["d_model"] ** 0.5


def _query_scale(config: Config, fields: Config) -> None:
    fields["attention_scale"] = config.get("query_pre_attn_scalar", 256) ** -0.5


def _write_gemma_scale(config: TransformerConfig, hf_config: Config) -> None:
    scale = config.attention_scale or config.head_width**-0.5
    number = scale**-2
    is_integer = abs(number - round(number)) < 1e-6
    hf_config["query_pre_attn_scalar"] = round(number) if is_integer else number


def _sandwich_keys(max_seq_len: int, *, final_softcap: float | None) -> tuple[ConfigKey, ...]:
    """Keys of Gemma 2 and 3."""
    llama_keys = _llama_keys(
        eps=1e-6,
        max_seq_len=max_seq_len,
        kv_heads=4,
        head_dim=256,
        activation_key="hidden_activation",
        tie_embeddings=True,
    )
    return (
        *llama_keys,
        _ATTENTION_BIAS,
        ConfigKey("final_logit_softcapping", "final_softcap", final_softcap, nullable=True),
    )


_GEMMA_IDS = token_ids(bos=2, eos=1, pad=0)
_GEMMA_FIXED = {"use_bidirectional_attention": False}
GEMMA = _llama_family(
    "gemma",
    "Gemma",
    ids=_GEMMA_IDS,
    keys=(
        *_llama_keys(eps=1e-6, max_seq_len=8192, kv_heads=16, head_dim=256, tie_embeddings=True),
        _ATTENTION_BIAS,
    ),
    read=(_gemma_scale,),
    fixed=_GEMMA_FIXED,
)
GEMMA2 = _llama_family(
    "gemma2",
    "Gemma2",
    ids=_GEMMA_IDS,
    keys=(
        *_sandwich_keys(8192, final_softcap=30.0),
        ConfigKey("attn_logit_softcapping", "logit_softcap", 50.0, nullable=True),
    ),
    layer_weights=_SANDWICH_LAYER,
    read=(_gemma_scale, _query_scale, read_sliding_window("period", 4096)),
    write=(_write_gemma_scale, write_sliding_window("period")),
    fixed=_GEMMA_FIXED,
)
_GEMMA_ROPE_KEYS = ("rope_theta", "rope_local_base_freq")
GEMMA3 = dataclasses.replace(
    GEMMA2,
    preset="gemma3",
    model_type="gemma3_text",
    keys=_sandwich_keys(131072, final_softcap=None),
    fixed={**_GEMMA_FIXED, "attn_logit_softcapping": None},  # transformers ignores it
    model_classes=decoder_classes("Gemma3ForCausalLM", "Gemma3Text"),
    read=(
        _no_dropout,
        _gemma_scale,
        _query_scale,
        read_sliding_window("period", 4096),
        read_dual_rope(base=1e6, local=1e4, keys=_GEMMA_ROPE_KEYS),
    ),
    write=(_write_gemma_scale, write_sliding_window("period"), write_dual_rope(_GEMMA_ROPE_KEYS)),
)
