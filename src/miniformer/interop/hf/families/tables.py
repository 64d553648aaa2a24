"""Tables and helpers that families share."""

from __future__ import annotations

from typing import Any

from miniformer.interop.hf.configs import Config, ConfigKey, ModelClass
from miniformer.interop.hf.weights import NameTable

# activation of transformers -> activation, plain and gated
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATED_ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
}
QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
GATE_UP = ("feed_forward.gate_proj", "feed_forward.up_proj")


def common_keys(max_seq_len: int, *, tie_embeddings: bool) -> tuple[ConfigKey, ...]:
    """Keys that most families have, with their defaults."""
    return (
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("hidden_size", "d_model"),
        ConfigKey("num_hidden_layers", "n_layers"),
        ConfigKey("num_attention_heads", "n_heads"),
        ConfigKey("intermediate_size", "d_ff"),
        ConfigKey("max_position_embeddings", "max_seq_len", max_seq_len),
        ConfigKey("tie_word_embeddings", "tie_embeddings", tie_embeddings),
    )


def token_ids(
    *, bos: int | None = None, eos: int | None = None, pad: int | None = None, **more: int | None
) -> Config:
    """Keys of a family's special token ids, with their defaults."""
    ids = {"bos": bos, "eos": eos, "pad": pad, **more}
    return {f"{name}_token_id": value for name, value in ids.items()}


def seq2seq_token_ids(**ids: int | None) -> Config:
    """Special token ids of a family with an encoder and a decoder."""
    return token_ids(**{"decoder_start": None, "forced_bos": None, "forced_eos": None, **ids})


def decoder_classes(causal_lm: str, name: str, head: str = "lm_head") -> dict[str, ModelClass]:
    """Classes of a decoder: language model, classifier of the last token, backbone."""
    classifier = {"output_dim": None, "output_bias": False, "pooling": "last"}
    return {
        causal_lm: ModelClass({}, {"head": head}),
        f"{name}ForSequenceClassification": ModelClass(classifier, {"head": "score"}),
        f"{name}Model": ModelClass({"tie_embeddings": True}, is_backbone=True),
    }


def encoder_classes(
    name: str,
    masked_lm: NameTable,
    classifier: NameTable,
    *,
    head: str,
    token_head: str = "linear",
    **fields: Any,
) -> dict[str, ModelClass]:
    """Classes of an encoder: masked language model, classifiers of texts and tokens, backbone.

    Args:
        name: prefix of their names.
        masked_lm, classifier: names of the weights of their heads.
        head: head of the classifier of texts.
        token_head: head of the classifier of tokens; linear, or that of texts.
        fields: more config fields of the classifier of texts.
    """
    tokens = {"output_dim": None, "head": token_head, "output_bias": True}
    token_weights: NameTable = {"head": "classifier"} if token_head == "linear" else classifier
    fields = {"output_dim": None, "pooling": "first", "head": head, **fields}
    backbone = {"head": "linear", "head_bias": False, "tie_embeddings": True}
    return {
        f"{name}ForMaskedLM": ModelClass({}, masked_lm),
        f"{name}ForSequenceClassification": ModelClass(fields, classifier),
        f"{name}ForTokenClassification": ModelClass(tokens, token_weights, per_token=True),
        f"{name}Model": ModelClass(backbone, is_backbone=True),
    }


def no_head_dim(config: Config, fields: Config) -> None:
    """Derives the head width from the model width."""
    fields["head_dim"] = None
