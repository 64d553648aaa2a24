"""GPT-2 and GPT-NeoX."""

from __future__ import annotations

import dataclasses

from miniformer.config import TransformerConfig
from miniformer.interop.hf.attention import read_rope, write_rope
from miniformer.interop.hf.configs import ConfigKey, Family
from miniformer.interop.hf.families.tables import (
    ACTIVATIONS,
    QKV,
    common_keys,
    decoder_classes,
    no_head_dim,
    token_ids,
)
from miniformer.interop.hf.weights import (
    STACKED_TRANSPOSED,
    TRANSPOSED,
    Rule,
    interleaved_heads,
)

GPT2 = Family(
    preset="gpt2",
    model_type="gpt2",
    prefix="transformer.",
    keys=(
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("n_embd", "d_model"),
        ConfigKey("n_layer", "n_layers"),
        ConfigKey("n_head", "n_heads"),
        ConfigKey("n_inner", "d_ff", None, nullable=True),
        ConfigKey("n_positions", "max_seq_len", 1024),
        ConfigKey("layer_norm_epsilon", "norm_eps", 1e-5),
        ConfigKey("activation_function", "activation", "gelu_new", ACTIVATIONS),
        ConfigKey("resid_pdrop", "dropout", 0.1),
        ConfigKey("tie_word_embeddings", "tie_embeddings", True),
    ),
    model_classes=decoder_classes("GPT2LMHeadModel", "GPT2"),
    weights={
        "embedding": "transformer.wte",
        "position": "transformer.wpe",
        "final_norm": "transformer.ln_f",
    },
    layer_prefix="transformer.h.{}.",
    layer_weights={
        QKV: ("attn.c_attn", STACKED_TRANSPOSED),
        "attention.o_proj": ("attn.c_proj", TRANSPOSED),
        "feed_forward.up_proj": ("mlp.c_fc", TRANSPOSED),
        "feed_forward.down_proj": ("mlp.c_proj", TRANSPOSED),
        "attention_norm": "ln_1",
        "feed_forward_norm": "ln_2",
    },
    read=(no_head_dim,),
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    constants={"attn_pdrop": 0.0},
    ids=token_ids(bos=50256, eos=50256),
    tied_weights={"lm_head.weight": ("transformer.wte.weight",)},
    ignored_suffixes=(".attn.bias", ".attn.masked_bias"),
)


def _interleave_qkv(config: TransformerConfig, rule: Rule) -> Rule:
    if len(rule.names) == 3:
        return dataclasses.replace(rule, layout=interleaved_heads(config.n_heads))
    return rule


GPT_NEOX = Family(
    preset="gpt_neox",
    model_type="gpt_neox",
    prefix="gpt_neox.",
    keys=(
        *common_keys(2048, tie_embeddings=False),
        ConfigKey("layer_norm_eps", "norm_eps", 1e-5),
        ConfigKey("hidden_act", "activation", "gelu", ACTIVATIONS),
        ConfigKey("hidden_dropout", "dropout", 0.0),
        ConfigKey("use_parallel_residual", "parallel_residual", True),
        ConfigKey("attention_bias", "attention_bias", True),
    ),
    model_classes=decoder_classes("GPTNeoXForCausalLM", "GPTNeoX", head="embed_out"),
    weights={"embedding": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm"},
    layer_prefix="gpt_neox.layers.{}.",
    layer_weights={
        QKV: "attention.query_key_value",
        "attention.o_proj": "attention.dense",
        "feed_forward.up_proj": "mlp.dense_h_to_4h",
        "feed_forward.down_proj": "mlp.dense_4h_to_h",
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    },
    adapt_rule=_interleave_qkv,
    read=(no_head_dim, read_rope(rotary_pct=0.25, keys=("rope_theta", "rotary_emb_base"))),
    write=(
        write_rope,
        lambda config, hf_config: hf_config.update(
            rotary_pct=config.rotary_pct, rotary_emb_base=config.rotary_base
        ),
    ),
    constants={"attention_dropout": 0.0},
    ids=token_ids(bos=0, eos=2),
    tied_weights={"embed_out.weight": ("gpt_neox.embed_in.weight",)},
    ignored_suffixes=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)
