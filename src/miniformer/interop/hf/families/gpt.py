"""GPT-2 and GPT-NeoX."""

from __future__ import annotations

import dataclasses

from miniformer.config import TransformerConfig
from miniformer.interop.hf.attention import (
    read_rotation,
    write_rotation,
)
from miniformer.interop.hf.configs import Family, Key, Kind
from miniformer.interop.hf.families.tables import (
    LAST_TOKEN,
    PLAIN,
    in_layers,
    no_head_dim,
    token_ids,
)
from miniformer.interop.hf.weights import (
    STACKED_TRANSPOSED,
    TRANSPOSED,
    Rule,
    by_head,
    rules,
)

GPT2 = Family(
    preset="gpt2",
    model_type="gpt2",
    prefix="transformer.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("n_embd", "d_model"),
        Key("n_layer", "n_layers"),
        Key("n_head", "n_heads"),
        Key("n_inner", "d_ff", None, null=True),
        Key("n_positions", "max_seq_len", 1024),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("activation_function", "activation", "gelu_new", PLAIN),
        Key("resid_pdrop", "dropout", 0.1),
        Key("tie_word_embeddings", "tie_embeddings", True),
    ),
    kinds={
        "GPT2LMHeadModel": Kind({}, rules({"head": "lm_head"})),
        "GPT2ForSequenceClassification": Kind(LAST_TOKEN, rules({"head": "score"})),
        "GPT2Model": Kind({"tie_embeddings": True}, bare=True),
    },
    rules=rules(
        {
            "embedding": "transformer.wte",
            "position": "transformer.wpe",
            "final_norm": "transformer.ln_f",
            **in_layers(
                {
                    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): (
                        "attn.c_attn",
                        STACKED_TRANSPOSED,
                    ),
                    "attention.o_proj": ("attn.c_proj", TRANSPOSED),
                    "feed_forward.up_proj": ("mlp.c_fc", TRANSPOSED),
                    "feed_forward.down_proj": ("mlp.c_proj", TRANSPOSED),
                    "attention_norm": "ln_1",
                    "feed_forward_norm": "ln_2",
                },
                "layers.{}.",
                "transformer.h.{}.",
            ),
        }
    ),
    read=(no_head_dim,),
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    written={"attn_pdrop": 0.0},
    ids=token_ids(bos=50256, eos=50256),
    copies={"lm_head.weight": ("transformer.wte.weight",)},
    buffers=(".attn.bias", ".attn.masked_bias"),
)


def _heads(config: TransformerConfig, rule: Rule) -> Rule:
    if len(rule.ours) == 3:
        return dataclasses.replace(rule, layout=by_head(config.n_heads))
    return rule


GPT_NEOX = Family(
    preset="gpt_neox",
    model_type="gpt_neox",
    prefix="gpt_neox.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "n_layers"),
        Key("num_attention_heads", "n_heads"),
        Key("intermediate_size", "d_ff"),
        Key("max_position_embeddings", "max_seq_len", 2048),
        Key("layer_norm_eps", "norm_eps", 1e-5),
        Key("hidden_act", "activation", "gelu", PLAIN),
        Key("hidden_dropout", "dropout", 0.0),
        Key("use_parallel_residual", "parallel_residual", True),
        Key("attention_bias", "attention_bias", True),
        Key("tie_word_embeddings", "tie_embeddings", False),
    ),
    kinds={
        "GPTNeoXForCausalLM": Kind({}, rules({"head": "embed_out"})),
        "GPTNeoXForSequenceClassification": Kind(LAST_TOKEN, rules({"head": "score"})),
        "GPTNeoXModel": Kind({"tie_embeddings": True}, bare=True),
    },
    rules=rules(
        {
            "embedding": "gpt_neox.embed_in",
            "final_norm": "gpt_neox.final_layer_norm",
            **in_layers(
                {
                    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): (
                        "attention.query_key_value",
                        by_head(1),  # of as many heads as there are
                    ),
                    "attention.o_proj": "attention.dense",
                    "feed_forward.up_proj": "mlp.dense_h_to_4h",
                    "feed_forward.down_proj": "mlp.dense_4h_to_h",
                    "attention_norm": "input_layernorm",
                    "feed_forward_norm": "post_attention_layernorm",
                },
                "layers.{}.",
                "gpt_neox.layers.{}.",
            ),
        }
    ),
    read=(
        no_head_dim,
        read_rotation(share=0.25, keys=("rope_theta", "rotary_emb_base")),
    ),
    write=(
        write_rotation,
        lambda config, theirs: theirs.update(
            rotary_pct=config.rotary_pct, rotary_emb_base=config.rotary_base
        ),
    ),
    adapt=_heads,
    written={"attention_dropout": 0.0},
    ids=token_ids(bos=0, eos=2),
    copies={
        "embed_out.weight": ("gpt_neox.embed_in.weight",),
    },
    buffers=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)
