"""BERT, RoBERTa, DistilBERT, ModernBERT."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniformer.config import TransformerConfig, UserError
from miniformer.interop.hf.attention import (
    read_dual_rope,
    read_sliding_window,
    write_dual_rope,
    write_sliding_window,
)
from miniformer.interop.hf.configs import Config, ConfigKey, Family
from miniformer.interop.hf.families.tables import (
    ACTIVATIONS,
    GATE_UP,
    GATED_ACTIVATIONS,
    QKV,
    common_keys,
    encoder_classes,
    no_head_dim,
    token_ids,
)
from miniformer.interop.hf.weights import STACKED, NameTable, Rule, skip_leading_rows


def _bert_embedding(prefix: str, position: Any) -> NameTable:
    return {
        "embedding": f"{prefix}embeddings.word_embeddings",
        "position": position,
        "type_embedding": f"{prefix}embeddings.token_type_embeddings",
        "embedding_norm": f"{prefix}embeddings.LayerNorm",
    }


def _copy_head_activation(config: Config, fields: Config) -> None:
    """Sets the activation of the masked-LM head to that of the layers."""
    if fields["head"] == "masked_lm":
        fields["head_activation"] = fields["activation"]


def _adapt_untied_bias(config: TransformerConfig, rule: Rule) -> Rule:
    """Renames the bias of an untied head, which uses that of the decoder."""
    tied_names = ("cls.predictions.bias", "lm_head.bias")
    if config.tie_embeddings or rule.hf_name not in tied_names:
        return rule
    return dataclasses.replace(rule, hf_name=rule.hf_name.removesuffix("bias") + "decoder.bias")


BERT = Family(
    preset="bert",
    model_type="bert",
    prefix="bert.",
    keys=(
        *common_keys(512, tie_embeddings=True),
        ConfigKey("layer_norm_eps", "norm_eps", 1e-12),
        ConfigKey("hidden_act", "activation", "gelu", ACTIVATIONS),
        ConfigKey("hidden_dropout_prob", "dropout", 0.1),
        ConfigKey("type_vocab_size", "token_types", 2),
    ),
    model_classes=encoder_classes(
        "Bert",
        {
            "head.dense": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
            "head.bias": "cls.predictions.bias",
            "head.weight": "cls.predictions.decoder.weight",
        },
        {"head.dense": "bert.pooler.dense", "head": "classifier"},
        head="dense_tanh",
    ),
    weights=_bert_embedding("bert.", "bert.embeddings.position_embeddings"),
    layer_prefix="bert.encoder.layer.{}.",
    layer_weights={
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up_proj": "intermediate.dense",
        "feed_forward.down_proj": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    },
    read=(no_head_dim, _copy_head_activation),
    fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    constants={"attention_probs_dropout_prob": 0.0},
    ids=token_ids(pad=0),
    tied_weights={
        "cls.predictions.decoder.weight": ("bert.embeddings.word_embeddings.weight",),
        "cls.predictions.decoder.bias": ("cls.predictions.bias",),
    },
    ignored_suffixes=("embeddings.position_ids",),
    adapt_rule=_adapt_untied_bias,
    ignored_prefixes=("bert.pooler.", "cls.seq_relationship.", "cls.predictions.bias"),
)


def _roberta_positions(config: Config, fields: Config) -> None:
    """Subtracts the leading rows of the position table, up to that of padding."""
    fields["max_seq_len"] -= config.get("pad_token_id", 1) + 1


def _write_roberta_positions(config: TransformerConfig, hf_config: Config) -> None:
    hf_config["pad_token_id"] = 1
    hf_config["max_position_embeddings"] += 2


def _roberta(model_type: str, name: str) -> Family:
    return dataclasses.replace(
        BERT,
        preset="roberta",
        model_type=model_type,
        prefix="roberta.",
        model_classes=encoder_classes(
            name,
            {
                "head.dense": "lm_head.dense",
                "head.norm": "lm_head.layer_norm",
                "head.bias": "lm_head.bias",
                "head.weight": "lm_head.decoder.weight",
            },
            {"head.dense": "classifier.dense", "head": "classifier.out_proj"},
            head="dense_tanh",
        ),
        weights=_bert_embedding(
            "roberta.", ("roberta.embeddings.position_embeddings", skip_leading_rows(2))
        ),
        layer_prefix="roberta.encoder.layer.{}.",
        read=(no_head_dim, _roberta_positions),
        write=(_write_roberta_positions,),
        fixed={**BERT.fixed, "pad_token_id": 1},
        ids=token_ids(bos=0, eos=2, pad=1),
        tied_weights={
            "lm_head.decoder.weight": ("roberta.embeddings.word_embeddings.weight",),
            "lm_head.decoder.bias": ("lm_head.bias",),
        },
        ignored_prefixes=("roberta.pooler.", "lm_head.bias"),
    )


ROBERTA = _roberta("roberta", "Roberta")
XLM_ROBERTA = _roberta("xlm-roberta", "XLMRoberta")

DISTILBERT = Family(
    preset="distilbert",
    model_type="distilbert",
    prefix="distilbert.",
    keys=(
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("dim", "d_model"),
        ConfigKey("n_layers", "n_layers"),
        ConfigKey("n_heads", "n_heads"),
        ConfigKey("hidden_dim", "d_ff"),
        ConfigKey("max_position_embeddings", "max_seq_len", 512),
        ConfigKey("activation", "activation", "gelu", ACTIVATIONS),
        ConfigKey("dropout", "dropout", 0.1),
        ConfigKey("tie_word_embeddings", "tie_embeddings", True),
    ),
    model_classes=encoder_classes(
        "DistilBert",
        {
            "head.dense": "vocab_transform",
            "head.norm": "vocab_layer_norm",
            "head": "vocab_projector",
        },
        {"head.dense": "pre_classifier", "head": "classifier"},
        head="dense_relu",
    ),
    weights={
        "embedding": "distilbert.embeddings.word_embeddings",
        "position": "distilbert.embeddings.position_embeddings",
        "embedding_norm": "distilbert.embeddings.LayerNorm",
    },
    layer_prefix="distilbert.transformer.layer.{}.",
    layer_weights={
        "attention.q_proj": "attention.q_lin",
        "attention.k_proj": "attention.k_lin",
        "attention.v_proj": "attention.v_lin",
        "attention.o_proj": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "feed_forward.up_proj": "ffn.lin1",
        "feed_forward.down_proj": "ffn.lin2",
        "feed_forward_norm": "output_layer_norm",
    },
    read=(no_head_dim, _copy_head_activation),
    constants={"attention_dropout": 0.0},
    ids=token_ids(pad=0),
    tied_weights={"vocab_projector.weight": ("distilbert.embeddings.word_embeddings.weight",)},
    ignored_suffixes=("embeddings.position_ids",),
)

_CLASSIFIER_ACTIVATION = ConfigKey("classifier_activation", "head_activation", "gelu", ACTIVATIONS)
_MODERNBERT_ROPE_KEYS = ("global_rope_theta", "local_rope_theta")


def _modernbert_head(config: Config, fields: Config) -> None:
    if fields["head"] == "masked_lm":
        fields["head_activation"] = _CLASSIFIER_ACTIVATION.read(config)
    if "output_dim" in fields:
        poolings = {"cls": "first", "mean": "mean"}
        pooling = config.get("classifier_pooling", "cls")
        if pooling not in poolings:
            raise UserError(f"classifier_pooling={pooling!r} is none of cls, mean")
        fields["pooling"] = poolings[pooling]


def _write_modernbert_head(config: TransformerConfig, hf_config: Config) -> None:
    activation = config.head_activation or "gelu"
    hf_config["classifier_activation"] = _CLASSIFIER_ACTIVATION.write(activation) or "gelu"
    hf_config["classifier_pooling"] = "mean" if config.pooling == "mean" else "cls"


MODERNBERT = Family(
    preset="modernbert",
    model_type="modernbert",
    keys=(
        *common_keys(8192, tie_embeddings=True),
        ConfigKey("norm_eps", "norm_eps", 1e-5),
        ConfigKey("hidden_activation", "activation", "gelu", GATED_ACTIVATIONS),
        ConfigKey("mlp_dropout", "dropout", 0.0),
        ConfigKey("decoder_bias", "head_bias", True),
        ConfigKey("attention_bias", "attention_bias", False),
        ConfigKey("mlp_bias", "feed_forward_bias", False),
        ConfigKey("norm_bias", "norm_bias", False),
        ConfigKey("classifier_bias", "bias", False),
    ),
    model_classes=encoder_classes(
        "ModernBert",
        {"head.dense": "head.dense", "head.norm": "head.norm", "head": "decoder"},
        {"head.dense": "head.dense", "head.norm": "head.norm", "head": "classifier"},
        head="masked_lm",
        token_head="masked_lm",
        output_bias=True,
    ),
    weights={
        "embedding": "model.embeddings.tok_embeddings",
        "embedding_norm": "model.embeddings.norm",
        "final_norm": "model.final_norm",
    },
    layer_prefix="model.layers.{}.",
    layer_weights={
        QKV: ("attn.Wqkv", STACKED),
        "attention.o_proj": "attn.Wo",
        GATE_UP: ("mlp.Wi", STACKED),
        "feed_forward.down_proj": "mlp.Wo",
        "attention_norm": "attn_norm",
        "feed_forward_norm": "mlp_norm",
    },
    read=(
        no_head_dim,
        read_sliding_window("first", 128),
        read_dual_rope(base=160000.0, local=10000.0, keys=_MODERNBERT_ROPE_KEYS),
        _modernbert_head,
    ),
    write=(
        write_sliding_window("first"),
        write_dual_rope(_MODERNBERT_ROPE_KEYS, legacy_scaling=False),
        _write_modernbert_head,
    ),
    constants={"attention_dropout": 0.0, "embedding_dropout": 0.0},
    ids=token_ids(bos=50281, eos=50282, pad=50283, cls=50281, sep=50282),
    tied_weights={"decoder.weight": ("model.embeddings.tok_embeddings.weight",)},
    ignored_suffixes=("rotary_emb.inv_freq",),
)
