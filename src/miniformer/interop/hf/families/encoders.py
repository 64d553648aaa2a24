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
from miniformer.interop.hf.configs import Config, ConfigKey, Family, ModelClass
from miniformer.interop.hf.families.tables import (
    ACTIVATIONS,
    GATED_ACTIVATIONS,
    no_head_dim,
    prefix_names,
    token_ids,
)
from miniformer.interop.hf.weights import (
    STACKED,
    Rule,
    rules,
    skip_leading_rows,
)

_BERT_KEYS = (
    ConfigKey("vocab_size", "vocab_size"),
    ConfigKey("hidden_size", "d_model"),
    ConfigKey("num_hidden_layers", "n_layers"),
    ConfigKey("num_attention_heads", "n_heads"),
    ConfigKey("intermediate_size", "d_ff"),
    ConfigKey("max_position_embeddings", "max_seq_len", 512),
    ConfigKey("layer_norm_eps", "norm_eps", 1e-12),
    ConfigKey("hidden_act", "activation", "gelu", ACTIVATIONS),
    ConfigKey("hidden_dropout_prob", "dropout", 0.1),
    ConfigKey("type_vocab_size", "token_types", 2),
    ConfigKey("tie_word_embeddings", "tie_embeddings", True),
)
_BACKBONE_FIELDS = {"head": "linear", "head_bias": False, "tie_embeddings": True}
_BERT_LAYER = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


def _bert_rules(prefix: str, position: Any) -> tuple[Rule, ...]:
    return rules(
        {
            "embedding": f"{prefix}embeddings.word_embeddings",
            "position": position,
            "type_embedding": f"{prefix}embeddings.token_type_embeddings",
            "embedding_norm": f"{prefix}embeddings.LayerNorm",
            **prefix_names(_BERT_LAYER, "layers.{}.", f"{prefix}encoder.layer.{{}}."),
        }
    )


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
    keys=_BERT_KEYS,
    model_classes={
        "BertForMaskedLM": ModelClass(
            {},
            rules(
                {
                    "head.dense": "cls.predictions.transform.dense",
                    "head.norm": "cls.predictions.transform.LayerNorm",
                    "head.bias": "cls.predictions.bias",
                    "head.weight": "cls.predictions.decoder.weight",
                }
            ),
        ),
        "BertForSequenceClassification": ModelClass(
            {"output_dim": None, "pooling": "first", "head": "dense_tanh"},
            rules({"head.dense": "bert.pooler.dense", "head": "classifier"}),
        ),
        "BertModel": ModelClass(_BACKBONE_FIELDS, is_backbone=True),
    },
    rules=_bert_rules("bert.", "bert.embeddings.position_embeddings"),
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
    prefix = "roberta."
    return dataclasses.replace(
        BERT,
        preset="roberta",
        model_type=model_type,
        prefix=prefix,
        model_classes={
            f"{name}ForMaskedLM": ModelClass(
                {},
                rules(
                    {
                        "head.dense": "lm_head.dense",
                        "head.norm": "lm_head.layer_norm",
                        "head.bias": "lm_head.bias",
                        "head.weight": "lm_head.decoder.weight",
                    }
                ),
            ),
            f"{name}ForSequenceClassification": ModelClass(
                {"output_dim": None, "pooling": "first", "head": "dense_tanh"},
                rules({"head.dense": "classifier.dense", "head": "classifier.out_proj"}),
            ),
            f"{name}Model": ModelClass(_BACKBONE_FIELDS, is_backbone=True),
        },
        rules=_bert_rules(
            prefix, (f"{prefix}embeddings.position_embeddings", skip_leading_rows(2))
        ),
        read=(no_head_dim, _roberta_positions),
        write=(_write_roberta_positions,),
        fixed={**BERT.fixed, "pad_token_id": 1},
        ids=token_ids(bos=0, eos=2, pad=1),
        tied_weights={
            "lm_head.decoder.weight": (f"{prefix}embeddings.word_embeddings.weight",),
            "lm_head.decoder.bias": ("lm_head.bias",),
        },
        ignored_prefixes=(f"{prefix}pooler.", "lm_head.bias"),
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
    model_classes={
        "DistilBertForMaskedLM": ModelClass(
            {},
            rules(
                {
                    "head.dense": "vocab_transform",
                    "head.norm": "vocab_layer_norm",
                    "head": "vocab_projector",
                }
            ),
        ),
        "DistilBertForSequenceClassification": ModelClass(
            {"output_dim": None, "pooling": "first", "head": "dense_relu"},
            rules({"head.dense": "pre_classifier", "head": "classifier"}),
        ),
        "DistilBertModel": ModelClass(_BACKBONE_FIELDS, is_backbone=True),
    },
    rules=rules(
        {
            "embedding": "distilbert.embeddings.word_embeddings",
            "position": "distilbert.embeddings.position_embeddings",
            "embedding_norm": "distilbert.embeddings.LayerNorm",
            **prefix_names(
                {
                    "attention.q_proj": "attention.q_lin",
                    "attention.k_proj": "attention.k_lin",
                    "attention.v_proj": "attention.v_lin",
                    "attention.o_proj": "attention.out_lin",
                    "attention_norm": "sa_layer_norm",
                    "feed_forward.up_proj": "ffn.lin1",
                    "feed_forward.down_proj": "ffn.lin2",
                    "feed_forward_norm": "output_layer_norm",
                },
                "layers.{}.",
                "distilbert.transformer.layer.{}.",
            ),
        }
    ),
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
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("hidden_size", "d_model"),
        ConfigKey("num_hidden_layers", "n_layers"),
        ConfigKey("num_attention_heads", "n_heads"),
        ConfigKey("intermediate_size", "d_ff"),
        ConfigKey("max_position_embeddings", "max_seq_len", 8192),
        ConfigKey("norm_eps", "norm_eps", 1e-5),
        ConfigKey("hidden_activation", "activation", "gelu", GATED_ACTIVATIONS),
        ConfigKey("mlp_dropout", "dropout", 0.0),
        ConfigKey("tie_word_embeddings", "tie_embeddings", True),
        ConfigKey("decoder_bias", "head_bias", True),
        ConfigKey("attention_bias", "attention_bias", False),
        ConfigKey("mlp_bias", "feed_forward_bias", False),
        ConfigKey("norm_bias", "norm_bias", False),
        ConfigKey("classifier_bias", "bias", False),
    ),
    model_classes={
        "ModernBertForMaskedLM": ModelClass(
            {}, rules({"head.dense": "head.dense", "head.norm": "head.norm", "head": "decoder"})
        ),
        "ModernBertForSequenceClassification": ModelClass(
            {"output_dim": None, "output_bias": True, "head": "masked_lm", "pooling": "first"},
            rules({"head.dense": "head.dense", "head.norm": "head.norm", "head": "classifier"}),
        ),
        "ModernBertModel": ModelClass(_BACKBONE_FIELDS, is_backbone=True),
    },
    rules=rules(
        {
            "embedding": "model.embeddings.tok_embeddings",
            "embedding_norm": "model.embeddings.norm",
            "final_norm": "model.final_norm",
            **prefix_names(
                {
                    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): (
                        "attn.Wqkv",
                        STACKED,
                    ),
                    "attention.o_proj": "attn.Wo",
                    ("feed_forward.gate_proj", "feed_forward.up_proj"): ("mlp.Wi", STACKED),
                    "feed_forward.down_proj": "mlp.Wo",
                    "attention_norm": "attn_norm",
                    "feed_forward_norm": "mlp_norm",
                },
                "layers.{}.",
                "model.layers.{}.",
            ),
        }
    ),
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
