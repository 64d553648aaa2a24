"""Decoders in the manner of Llama."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniformer.config import TransformerConfig
from miniformer.interop.hf.attention import (
    read_rotation,
    read_two_rotations,
    read_windows,
    write_rotation,
    write_two_rotations,
    write_windows,
)
from miniformer.interop.hf.configs import Config, Family, Key, Kind, Reader, Writer
from miniformer.interop.hf.families.tables import GATED, LAST_TOKEN, in_layers, token_ids
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


def _llama_keys(
    *,
    eps: float,
    longest: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    gelu: str = "hidden_act",
    tied: bool = False,
) -> tuple[Key, ...]:
    return (
        Key("vocab_size", "vocab_size"),
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "n_layers"),
        Key("num_attention_heads", "n_heads"),
        Key("num_key_value_heads", "n_kv_heads", kv_heads, null=True),
        Key("head_dim", "head_dim", head_dim, null=True),
        Key("intermediate_size", "d_ff"),
        Key("max_position_embeddings", "max_seq_len", longest),
        Key("rms_norm_eps", "norm_eps", eps),
        Key(gelu, "activation", "gelu_pytorch_tanh" if tied else "silu", GATED),
        Key("tie_word_embeddings", "tie_embeddings", tied),
    )


_ATTENTION_BIAS = Key("attention_bias", "attention_bias", False)


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
    partial: bool = False,
    **more: Any,
) -> Family:
    table = {**_LLAMA_AROUND, **in_layers(layer or _LLAMA_LAYER, "layers.{}.", "model.layers.{}.")}
    return Family(
        preset=preset,
        model_type=more.pop("model_type", preset),
        keys=keys,
        kinds=_decoder_kinds(name),
        rules=rules(table),
        read=(_no_dropout, *read, read_rotation(partial=partial)),
        write=(*write, write_rotation),
        written={"attention_dropout": 0.0},
        copies=_LLAMA_COPIES,
        buffers=("rotary_emb.inv_freq",),
        **more,
    )


LLAMA = _llama_like(
    "llama",
    "Llama",
    ids=token_ids(bos=1, eos=2),
    keys=(
        *_llama_keys(eps=1e-6, longest=2048),
        _ATTENTION_BIAS,
        Key("mlp_bias", "feed_forward_bias", False),
    ),
)
MISTRAL = _llama_like(
    "mistral",
    "Mistral",
    ids=token_ids(bos=1, eos=2),
    keys=_llama_keys(eps=1e-6, longest=131072, kv_heads=8),
    read=(read_windows("all", 4096),),
    write=(write_windows("all"),),
)
QWEN2 = _llama_like(
    "qwen2",
    "Qwen2",
    ids=token_ids(),
    keys=_llama_keys(eps=1e-6, longest=32768, kv_heads=32),
    read=(read_windows("late"),),
    write=(write_windows("late"),),
)
QWEN3 = _llama_like(
    "qwen3",
    "Qwen3",
    ids=token_ids(),
    keys=(*_llama_keys(eps=1e-6, longest=32768, kv_heads=32, head_dim=128), _ATTENTION_BIAS),
    read=(read_windows("late"),),
    write=(write_windows("late"),),
)
OLMO2 = _llama_like(
    "olmo2",
    "Olmo2",
    ids=token_ids(eos=50279, pad=1),
    keys=(*_llama_keys(eps=1e-5, longest=2048), _ATTENTION_BIAS),
    layer={
        **_LLAMA_LAYER,
        "attention_out_norm": "post_attention_layernorm",
        "feed_forward_out_norm": "post_feedforward_layernorm",
    },
)
PHI3 = _llama_like(
    "phi3",
    "Phi3",
    partial=True,
    ids=token_ids(bos=1, eos=32000, pad=32000),
    keys=(*_llama_keys(eps=1e-5, longest=4096), Key("resid_pdrop", "dropout", 0.0)),
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


def _query_scale(config: Config, fields: Config) -> None:
    fields["attention_scale"] = config.get("query_pre_attn_scalar", 256) ** -0.5


def _write_gemma_scale(config: TransformerConfig, theirs: Config) -> None:
    scale = config.attention_scale or config.head_width**-0.5
    number = scale**-2
    whole = abs(number - round(number)) < 1e-6
    theirs["query_pre_attn_scalar"] = round(number) if whole else number


def _sandwich_keys(longest: int, *, cap: float | None) -> tuple[Key, ...]:
    """Keys of Gemma 2 and 3."""
    usual = _llama_keys(
        eps=1e-6,
        longest=longest,
        kv_heads=4,
        head_dim=256,
        gelu="hidden_activation",
        tied=True,
    )
    return (
        *usual,
        _ATTENTION_BIAS,
        Key("final_logit_softcapping", "final_softcap", cap, null=True),
    )


_GEMMA_IDS = token_ids(bos=2, eos=1, pad=0)
_GEMMA_FIXED = {"use_bidirectional_attention": False}
GEMMA = _llama_like(
    "gemma",
    "Gemma",
    ids=_GEMMA_IDS,
    keys=(
        *_llama_keys(eps=1e-6, longest=8192, kv_heads=16, head_dim=256, tied=True),
        _ATTENTION_BIAS,
    ),
    read=(_gemma_scale,),
    fixed=_GEMMA_FIXED,
)
GEMMA2 = _llama_like(
    "gemma2",
    "Gemma2",
    ids=_GEMMA_IDS,
    keys=(
        *_sandwich_keys(8192, cap=30.0),
        Key("attn_logit_softcapping", "logit_softcap", 50.0, null=True),
    ),
    layer=_SANDWICH_LAYER,
    read=(_gemma_scale, _query_scale, read_windows("period", 4096)),
    write=(_write_gemma_scale, write_windows("period")),
    fixed=_GEMMA_FIXED,
)
_GEMMA_BASES = ("rope_theta", "rope_local_base_freq")
GEMMA3 = dataclasses.replace(
    GEMMA2,
    preset="gemma3",
    model_type="gemma3_text",
    keys=_sandwich_keys(131072, cap=None),
    fixed={**_GEMMA_FIXED, "attn_logit_softcapping": None},  # transformers reads it nowhere
    kinds=_decoder_kinds("Gemma3", "Gemma3Text"),
    read=(
        _no_dropout,
        _gemma_scale,
        _query_scale,
        read_windows("period", 4096),
        read_two_rotations(base=1e6, local=1e4, keys=_GEMMA_BASES),
    ),
    write=(_write_gemma_scale, write_windows("period"), write_two_rotations(_GEMMA_BASES)),
)
