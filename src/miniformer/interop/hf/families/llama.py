"""Decoders in the manner of Llama."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniformer.config import TransformerConfig, UserError
from miniformer.interop.hf.attention import (
    read_rotation,
    read_two_rotations,
    read_windows,
    write_rotation,
    write_two_rotations,
    write_windows,
)
from miniformer.interop.hf.configs import Config, Family, Key, Kind, Reader, Writer
from miniformer.interop.hf.families.tables import GATED, LAST_TOKEN, in_layers
from miniformer.interop.hf.weights import (
    STACKED,
    rules,
)

_LLAMA_LAYER: dict[Any, Any] = {
    **{f"attention.{each}_proj": f"self_attn.{each}_proj" for each in "qkvo"},
    **{f"feed_forward.{each}_proj": f"mlp.{each}_proj" for each in ("gate", "up", "down")},
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
_LLAMA_AROUND = {"embedding": "model.embed_tokens", "final_norm": "model.norm"}
_LLAMA_COPIES = {"lm_head.weight": ("model.embed_tokens.weight",)}


def _decoder_kinds(name: str, inner: str | None = None) -> dict[str, Kind]:
    inner = inner or name
    return {
        f"{name}ForCausalLM": Kind({}, rules({"head": "lm_head"})),
        f"{inner}ForSequenceClassification": Kind(LAST_TOKEN, rules({"head": "score"})),
        f"{inner}Model": Kind({"tie_embeddings": True}, bare=True),
    }


def _llama_keys(*, eps: float, gelu: str = "hidden_act", tied: bool = False) -> tuple[Key, ...]:
    return (
        Key("vocab_size", "vocab_size"),
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "n_layers"),
        Key("num_attention_heads", "n_heads"),
        Key("num_key_value_heads", "n_kv_heads", None),
        Key("head_dim", "head_dim", None),
        Key("intermediate_size", "d_ff"),
        Key("max_position_embeddings", "max_seq_len", 2048),
        Key("rms_norm_eps", "norm_eps", eps),
        Key(gelu, "activation", "gelu_pytorch_tanh" if tied else "silu", GATED),
        Key("tie_word_embeddings", "tie_embeddings", tied),
    )


def _no_dropout(config: Config, fields: Config) -> None:
    fields["dropout"] = 0.0


def _llama_like(
    preset: str,
    name: str,
    *,
    keys: tuple[Key, ...],
    layer: dict[Any, Any] | None = None,
    read: tuple[Reader, ...] = (),
    write: tuple[Writer, ...] = (),
    base: float = 10000.0,
    **more: Any,
) -> Family:
    table = {**_LLAMA_AROUND, **in_layers(layer or _LLAMA_LAYER, "layers.{}.", "model.layers.{}.")}
    return Family(
        preset=preset,
        model_type=more.pop("model_type", preset),
        keys=keys,
        kinds=_decoder_kinds(name),
        rules=rules(table),
        read=(_no_dropout, *read, read_rotation(base=base)),
        write=(*write, write_rotation),
        written={"attention_dropout": 0.0},
        copies=_LLAMA_COPIES,
        buffers=("rotary_emb.inv_freq",),
        **more,
    )


def _same_biases(config: Config, fields: Config) -> None:
    """Llama's two switches for biases must agree, as ours is one."""
    if bool(fields["bias"]) != bool(fields["qkv_bias"]):
        raise UserError("attention_bias and mlp_bias must both be true or both be false")


LLAMA = _llama_like(
    "llama",
    "Llama",
    keys=(
        *_llama_keys(eps=1e-6),
        Key("attention_bias", "qkv_bias", False),
        Key("mlp_bias", "bias", False),
    ),
    read=(_same_biases,),
)
MISTRAL = _llama_like(
    "mistral",
    "Mistral",
    keys=_llama_keys(eps=1e-6),
    read=(read_windows("all"),),
    write=(write_windows("all"),),
)
QWEN2 = _llama_like(
    "qwen2",
    "Qwen2",
    keys=_llama_keys(eps=1e-6),
    read=(read_windows("late"),),
    write=(write_windows("late"),),
)
QWEN3 = _llama_like(
    "qwen3",
    "Qwen3",
    keys=_llama_keys(eps=1e-6),
    read=(read_windows("late"),),
    write=(write_windows("late"),),
    fixed={"attention_bias": False},
)
OLMO2 = _llama_like(
    "olmo2",
    "Olmo2",
    keys=_llama_keys(eps=1e-5),
    layer={
        **_LLAMA_LAYER,
        "attention_out_norm": "post_attention_layernorm",
        "feed_forward_out_norm": "post_feedforward_layernorm",
    },
    fixed={"attention_bias": False},
)
PHI3 = _llama_like(
    "phi3",
    "Phi3",
    keys=(*_llama_keys(eps=1e-5), Key("resid_pdrop", "dropout", 0.0)),
    layer={
        **{k: v for k, v in _LLAMA_LAYER.items() if "_proj" not in k},
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"): (
            "self_attn.qkv_proj",
            STACKED,
        ),
        "attention.o_proj": "self_attn.o_proj",
        ("feed_forward.gate_proj", "feed_forward.up_proj"): ("mlp.gate_up_proj", STACKED),
        "feed_forward.down_proj": "mlp.down_proj",
    },
    read=(read_windows("all"),),
    write=(write_windows("all"),),
)


def _gemma_scale(config: Config, fields: Config) -> None:
    fields["embedding_scale"] = fields["d_model"] ** 0.5
    if "query_pre_attn_scalar" in config:
        fields["attention_scale"] = config["query_pre_attn_scalar"] ** -0.5


def _write_gemma_scale(config: TransformerConfig, theirs: Config) -> None:
    scale = config.attention_scale or config.head_width**-0.5
    number = scale**-2
    whole = abs(number - round(number)) < 1e-6
    theirs["query_pre_attn_scalar"] = round(number) if whole else number


_GEMMA_CAPS = (
    Key("attn_logit_softcapping", "logit_softcap", None),
    Key("final_logit_softcapping", "final_softcap", None),
)
_GEMMA_FIXED = {"attention_bias": False, "use_bidirectional_attention": False}
GEMMA = _llama_like(
    "gemma",
    "Gemma",
    keys=_llama_keys(eps=1e-6, tied=True),
    read=(_gemma_scale,),
    fixed=_GEMMA_FIXED,
)
GEMMA2 = _llama_like(
    "gemma2",
    "Gemma2",
    keys=(*_llama_keys(eps=1e-6, gelu="hidden_activation", tied=True), *_GEMMA_CAPS),
    layer=_SANDWICH_LAYER,
    read=(_gemma_scale, read_windows("period")),
    write=(_write_gemma_scale, write_windows("period")),
    fixed=_GEMMA_FIXED,
)
_GEMMA_BASES = ("rope_theta", "rope_local_base_freq")
GEMMA3 = dataclasses.replace(
    GEMMA2,
    preset="gemma3",
    model_type="gemma3_text",
    kinds=_decoder_kinds("Gemma3", "Gemma3Text"),
    read=(
        _no_dropout,
        _gemma_scale,
        read_windows("period"),
        read_two_rotations(base=1e6, local=1e4, keys=_GEMMA_BASES),
    ),
    write=(_write_gemma_scale, write_windows("period"), write_two_rotations(_GEMMA_BASES)),
)
