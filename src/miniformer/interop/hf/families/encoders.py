"""BERT, RoBERTa, DistilBERT, ModernBERT."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniformer.config import TransformerConfig, UserError
from miniformer.interop.hf.attention import (
    read_two_rotations,
    read_windows,
    write_two_rotations,
    write_windows,
)
from miniformer.interop.hf.configs import Config, Family, Key, Kind
from miniformer.interop.hf.families.tables import GATED, PLAIN, in_layers, no_head_dim, token_ids
from miniformer.interop.hf.weights import (
    STACKED,
    Rule,
    after_rows,
    rules,
)

_BERT_KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "d_model"),
    Key("num_hidden_layers", "n_layers"),
    Key("num_attention_heads", "n_heads"),
    Key("intermediate_size", "d_ff"),
    Key("max_position_embeddings", "max_seq_len", 512),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("hidden_act", "activation", "gelu", PLAIN),
    Key("hidden_dropout_prob", "dropout", 0.1),
    Key("type_vocab_size", "token_types", 2),
    Key("tie_word_embeddings", "tie_embeddings", True),
)
_BARE = {"head": "linear", "head_bias": False, "tie_embeddings": True}
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
            **in_layers(_BERT_LAYER, "layers.{}.", f"{prefix}encoder.layer.{{}}."),
        }
    )


def _same_activation(config: Config, fields: Config) -> None:
    """The masked-LM head has the activation of the layers."""
    if fields["head"] == "masked_lm":
        fields["head_activation"] = fields["activation"]


def _untied_bias(config: TransformerConfig, rule: Rule) -> Rule:
    """Where the head is untied, so is its bias, and the usual one is of no use."""
    usual = ("cls.predictions.bias", "lm_head.bias")
    if config.tie_embeddings or rule.theirs not in usual:
        return rule
    return dataclasses.replace(rule, theirs=rule.theirs.removesuffix("bias") + "decoder.bias")


BERT = Family(
    preset="bert",
    model_type="bert",
    prefix="bert.",
    keys=_BERT_KEYS,
    kinds={
        "BertForMaskedLM": Kind(
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
        "BertForSequenceClassification": Kind(
            {"output_dim": None, "pooling": "first", "head": "dense_tanh"},
            rules({"head.dense": "bert.pooler.dense", "head": "classifier"}),
        ),
        "BertModel": Kind(_BARE, bare=True),
    },
    rules=_bert_rules("bert.", "bert.embeddings.position_embeddings"),
    read=(no_head_dim, _same_activation),
    fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    written={"attention_probs_dropout_prob": 0.0},
    ids=token_ids(pad=0),
    copies={
        "cls.predictions.decoder.weight": ("bert.embeddings.word_embeddings.weight",),
        "cls.predictions.decoder.bias": ("cls.predictions.bias",),
    },
    buffers=("embeddings.position_ids",),
    adapt=_untied_bias,
    left_out=("bert.pooler.", "cls.seq_relationship.", "cls.predictions.bias"),
)


def _roberta_positions(config: Config, fields: Config) -> None:
    """Its table begins with rows for padding, and for what comes before it."""
    fields["max_seq_len"] -= config.get("pad_token_id", 1) + 1


def _write_roberta_positions(config: TransformerConfig, theirs: Config) -> None:
    theirs["pad_token_id"] = 1
    theirs["max_position_embeddings"] += 2


def _roberta(model_type: str, name: str) -> Family:
    prefix = "roberta."
    return dataclasses.replace(
        BERT,
        preset="roberta",
        model_type=model_type,
        prefix=prefix,
        kinds={
            f"{name}ForMaskedLM": Kind(
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
            f"{name}ForSequenceClassification": Kind(
                {"output_dim": None, "pooling": "first", "head": "dense_tanh"},
                rules({"head.dense": "classifier.dense", "head": "classifier.out_proj"}),
            ),
            f"{name}Model": Kind(_BARE, bare=True),
        },
        rules=_bert_rules(prefix, (f"{prefix}embeddings.position_embeddings", after_rows(2))),
        read=(no_head_dim, _roberta_positions),
        write=(_write_roberta_positions,),
        fixed={**BERT.fixed, "pad_token_id": 1},
        ids=token_ids(bos=0, eos=2, pad=1),
        copies={
            "lm_head.decoder.weight": (f"{prefix}embeddings.word_embeddings.weight",),
            "lm_head.decoder.bias": ("lm_head.bias",),
        },
        left_out=(f"{prefix}pooler.", "lm_head.bias"),
    )


ROBERTA = _roberta("roberta", "Roberta")
XLM_ROBERTA = _roberta("xlm-roberta", "XLMRoberta")

DISTILBERT = Family(
    preset="distilbert",
    model_type="distilbert",
    prefix="distilbert.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("dim", "d_model"),
        Key("n_layers", "n_layers"),
        Key("n_heads", "n_heads"),
        Key("hidden_dim", "d_ff"),
        Key("max_position_embeddings", "max_seq_len", 512),
        Key("activation", "activation", "gelu", PLAIN),
        Key("dropout", "dropout", 0.1),
        Key("tie_word_embeddings", "tie_embeddings", True),
    ),
    kinds={
        "DistilBertForMaskedLM": Kind(
            {},
            rules(
                {
                    "head.dense": "vocab_transform",
                    "head.norm": "vocab_layer_norm",
                    "head": "vocab_projector",
                }
            ),
        ),
        "DistilBertForSequenceClassification": Kind(
            {"output_dim": None, "pooling": "first", "head": "dense_relu"},
            rules({"head.dense": "pre_classifier", "head": "classifier"}),
        ),
        "DistilBertModel": Kind(_BARE, bare=True),
    },
    rules=rules(
        {
            "embedding": "distilbert.embeddings.word_embeddings",
            "position": "distilbert.embeddings.position_embeddings",
            "embedding_norm": "distilbert.embeddings.LayerNorm",
            **in_layers(
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
    read=(no_head_dim, _same_activation),
    written={"attention_dropout": 0.0},
    ids=token_ids(pad=0),
    copies={"vocab_projector.weight": ("distilbert.embeddings.word_embeddings.weight",)},
    buffers=("embeddings.position_ids",),
)

_CLASSIFIER_ACTIVATION = Key("classifier_activation", "head_activation", "gelu", PLAIN)
_MODERNBERT_BASES = ("global_rope_theta", "local_rope_theta")


def _modernbert_head(config: Config, fields: Config) -> None:
    if fields["head"] == "masked_lm":
        fields["head_activation"] = _CLASSIFIER_ACTIVATION.read(config)
    if "output_dim" in fields:
        ways = {"cls": "first", "mean": "mean"}
        given = config.get("classifier_pooling", "cls")
        if given not in ways:
            raise UserError(f"classifier_pooling={given!r} is none of cls, mean")
        fields["pooling"] = ways[given]


def _write_modernbert_head(config: TransformerConfig, theirs: Config) -> None:
    activation = config.head_activation or "gelu"
    theirs["classifier_activation"] = _CLASSIFIER_ACTIVATION.write(activation) or "gelu"
    theirs["classifier_pooling"] = "mean" if config.pooling == "mean" else "cls"


MODERNBERT = Family(
    preset="modernbert",
    model_type="modernbert",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("hidden_size", "d_model"),
        Key("num_hidden_layers", "n_layers"),
        Key("num_attention_heads", "n_heads"),
        Key("intermediate_size", "d_ff"),
        Key("max_position_embeddings", "max_seq_len", 8192),
        Key("norm_eps", "norm_eps", 1e-5),
        Key("hidden_activation", "activation", "gelu", GATED),
        Key("mlp_dropout", "dropout", 0.0),
        Key("tie_word_embeddings", "tie_embeddings", True),
        Key("decoder_bias", "head_bias", True),
        Key("attention_bias", "attention_bias", False),
        Key("mlp_bias", "feed_forward_bias", False),
        Key("norm_bias", "norm_bias", False),
        Key("classifier_bias", "bias", False),
    ),
    kinds={
        "ModernBertForMaskedLM": Kind(
            {}, rules({"head.dense": "head.dense", "head.norm": "head.norm", "head": "decoder"})
        ),
        "ModernBertForSequenceClassification": Kind(
            {"output_dim": None, "output_bias": True, "head": "masked_lm", "pooling": "first"},
            rules({"head.dense": "head.dense", "head.norm": "head.norm", "head": "classifier"}),
        ),
        "ModernBertModel": Kind(_BARE, bare=True),
    },
    rules=rules(
        {
            "embedding": "model.embeddings.tok_embeddings",
            "embedding_norm": "model.embeddings.norm",
            "final_norm": "model.final_norm",
            **in_layers(
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
        read_windows("first", 128),
        read_two_rotations(base=160000.0, local=10000.0, keys=_MODERNBERT_BASES),
        _modernbert_head,
    ),
    write=(
        write_windows("first"),
        write_two_rotations(_MODERNBERT_BASES, old=False),
        _write_modernbert_head,
    ),
    written={"attention_dropout": 0.0, "embedding_dropout": 0.0},
    ids=token_ids(bos=50281, eos=50282, pad=50283, cls=50281, sep=50282),
    copies={"decoder.weight": ("model.embeddings.tok_embeddings.weight",)},
    buffers=("rotary_emb.inv_freq",),
)
