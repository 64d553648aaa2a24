"""Every family whose files are read and written.

Keys and names are those of transformers 5 and of the files on the hub, which are older.
"""

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
from miniformer.interop.hf.weights import (
    AfterRows,
    ByHead,
    OneRow,
    Rule,
    Stacked,
    StackedTransposed,
    Transposed,
    rules,
)

_PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
}


def _in_layers(names: dict[Any, Any], ours: str, theirs: str) -> dict[Any, Any]:
    """A table of names within a layer, with what is before them on both sides."""
    made: dict[Any, Any] = {}
    for left, right in names.items():
        key = ours + left if isinstance(left, str) else tuple(ours + each for each in left)
        made[key] = theirs + right if isinstance(right, str) else (theirs + right[0], right[1])
    return made


# ---- decoders in the manner of Llama ----

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
_LLAMA_COPIES = {"lm_head.weight": "model.embed_tokens.weight"}


def _decoder_kinds(name: str) -> dict[str, Kind]:
    classes = {"output_dim": None, "output_bias": False, "pooling": "last"}
    return {
        f"{name}ForCausalLM": Kind({}, rules({"head": "lm_head"})),
        f"{name}ForSequenceClassification": Kind(classes, rules({"head": "score"})),
        f"{name}Model": Kind({"tie_embeddings": True}, bare=True),
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
        Key(gelu, "activation", "gelu_pytorch_tanh" if tied else "silu", _GATED),
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
    table = {**_LLAMA_AROUND, **_in_layers(layer or _LLAMA_LAYER, "layers.{}.", "model.layers.{}.")}
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
            Stacked(),
        ),
        "attention.o_proj": "self_attn.o_proj",
        ("feed_forward.gate_proj", "feed_forward.up_proj"): ("mlp.gate_up_proj", Stacked()),
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
    theirs["query_pre_attn_scalar"] = round(number) if abs(number - round(number)) < 1e-6 else number


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
    kinds=_decoder_kinds("Gemma3"),
    read=(
        _no_dropout,
        _gemma_scale,
        read_windows("period"),
        read_two_rotations(base=1e6, local=1e4, keys=_GEMMA_BASES),
    ),
    write=(_write_gemma_scale, write_windows("period"), write_two_rotations(_GEMMA_BASES)),
)
GEMMA3.kinds["Gemma3TextModel"] = GEMMA3.kinds.pop("Gemma3Model")
GEMMA3.kinds["Gemma3TextForSequenceClassification"] = GEMMA3.kinds.pop(
    "Gemma3ForSequenceClassification"
)

# ---- GPT ----


def _no_fixed_heads(config: Config, fields: Config) -> None:
    fields["head_dim"] = None  # it follows from the width


GPT2 = Family(
    preset="gpt2",
    model_type="gpt2",
    prefix="transformer.",
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("n_embd", "d_model"),
        Key("n_layer", "n_layers"),
        Key("n_head", "n_heads"),
        Key("n_inner", "d_ff", None),
        Key("n_positions", "max_seq_len", 1024),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("activation_function", "activation", "gelu_new", _PLAIN),
        Key("resid_pdrop", "dropout", 0.1),
        Key("tie_word_embeddings", "tie_embeddings", True),
    ),
    kinds={
        "GPT2LMHeadModel": Kind({}, rules({"head": "lm_head"})),
        "GPT2ForSequenceClassification": Kind(
            {"output_dim": None, "output_bias": False, "pooling": "last"}, rules({"head": "score"})
        ),
        "GPT2Model": Kind({"tie_embeddings": True}, bare=True),
    },
    rules=rules(
        {
            "embedding": "transformer.wte",
            "position": "transformer.wpe",
            "final_norm": "transformer.ln_f",
            **_in_layers(
                {
                    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): (
                        "attn.c_attn",
                        StackedTransposed(),
                    ),
                    "attention.o_proj": ("attn.c_proj", Transposed()),
                    "feed_forward.up_proj": ("mlp.c_fc", Transposed()),
                    "feed_forward.down_proj": ("mlp.c_proj", Transposed()),
                    "attention_norm": "ln_1",
                    "feed_forward_norm": "ln_2",
                },
                "layers.{}.",
                "transformer.h.{}.",
            ),
        }
    ),
    read=(_no_fixed_heads,),
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    written={"attn_pdrop": 0.0},
    copies={"lm_head.weight": "transformer.wte.weight"},
    buffers=(".attn.bias", ".attn.masked_bias"),
)


def _neox_heads(config: Config, fields: Config) -> None:
    fields["head_dim"] = None


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
        Key("hidden_act", "activation", "gelu", _PLAIN),
        Key("hidden_dropout", "dropout", 0.0),
        Key("use_parallel_residual", "parallel_residual", True),
        Key("tie_word_embeddings", "tie_embeddings", False),
    ),
    kinds={
        "GPTNeoXForCausalLM": Kind({}, rules({"head": "embed_out"})),
        "GPTNeoXForSequenceClassification": Kind(
            {"output_dim": None, "output_bias": False, "pooling": "last"}, rules({"head": "score"})
        ),
        "GPTNeoXModel": Kind({"tie_embeddings": True}, bare=True),
    },
    rules=rules(
        {
            "embedding": "gpt_neox.embed_in",
            "final_norm": "gpt_neox.final_layer_norm",
            **_in_layers(
                {
                    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): (
                        "attention.query_key_value",
                        ByHead(),
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
        _neox_heads,
        read_rotation(base=10000.0, share=0.25, keys=("rope_theta", "rotary_emb_base")),
    ),
    write=(
        write_rotation,
        lambda config, theirs: theirs.update(
            rotary_pct=config.rotary_pct, rotary_emb_base=config.rotary_base
        ),
    ),
    fixed={"attention_bias": True},
    written={"attention_dropout": 0.0},
    copies={
        "embed_out.weight": "gpt_neox.embed_in.weight",
        "lm_head.weight": "gpt_neox.embed_in.weight",
    },
    buffers=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)

# ---- encoders ----

_BERT_KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "d_model"),
    Key("num_hidden_layers", "n_layers"),
    Key("num_attention_heads", "n_heads"),
    Key("intermediate_size", "d_ff"),
    Key("max_position_embeddings", "max_seq_len", 512),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("hidden_act", "activation", "gelu", _PLAIN),
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
            **_in_layers(_BERT_LAYER, "layers.{}.", f"{prefix}encoder.layer.{{}}."),
        }
    )


def _plain_gelu(config: Config, fields: Config) -> None:
    """The masked-LM head's activation is the layers', and ours is gelu."""
    if fields["head"] == "masked_lm" and fields["activation"] != "gelu":
        raise UserError(f"a masked-LM head with {fields['activation']} is not supported, only gelu")


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
    read=(_no_fixed_heads, _plain_gelu),
    fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    written={"attention_probs_dropout_prob": 0.0},
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    buffers=("embeddings.position_ids",),
    left_out=("bert.pooler.", "cls.seq_relationship."),
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
        rules=_bert_rules(prefix, (f"{prefix}embeddings.position_embeddings", AfterRows(2))),
        read=(_no_fixed_heads, _roberta_positions),
        write=(_write_roberta_positions,),
        fixed={**BERT.fixed, "pad_token_id": 1},
        copies={
            "lm_head.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        left_out=(f"{prefix}pooler.",),
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
        Key("activation", "activation", "gelu", _PLAIN),
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
            **_in_layers(
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
    read=(_no_fixed_heads, _plain_gelu),
    written={"attention_dropout": 0.0},
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    buffers=("embeddings.position_ids",),
)

_MODERNBERT_BASES = ("global_rope_theta", "local_rope_theta")


def _modernbert_classes(config: Config, fields: Config) -> None:
    if "output_dim" in fields:
        ways = {"cls": "first", "mean": "mean"}
        given = config.get("classifier_pooling", "cls")
        if given not in ways:
            raise UserError(f"classifier_pooling={given!r} is none of cls, mean")
        fields["pooling"] = ways[given]


def _write_modernbert_classes(config: TransformerConfig, theirs: Config) -> None:
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
        Key("hidden_activation", "activation", "gelu", _GATED),
        Key("mlp_dropout", "dropout", 0.0),
        Key("tie_word_embeddings", "tie_embeddings", True),
        Key("decoder_bias", "head_bias", True),
    ),
    kinds={
        "ModernBertForMaskedLM": Kind(
            {}, rules({"head.dense": "head.dense", "head.norm": "head.norm", "head": "decoder"})
        ),
        "ModernBertForSequenceClassification": Kind(
            {"output_dim": None, "output_bias": True, "head": "masked_lm"},
            rules({"head.dense": "head.dense", "head.norm": "head.norm", "head": "classifier"}),
        ),
        "ModernBertModel": Kind(_BARE, bare=True),
    },
    rules=rules(
        {
            "embedding": "model.embeddings.tok_embeddings",
            "embedding_norm": "model.embeddings.norm",
            "final_norm": "model.final_norm",
            **_in_layers(
                {
                    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): (
                        "attn.Wqkv",
                        Stacked(),
                    ),
                    "attention.o_proj": "attn.Wo",
                    ("feed_forward.gate_proj", "feed_forward.up_proj"): ("mlp.Wi", Stacked()),
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
        _no_fixed_heads,
        read_windows("first"),
        read_two_rotations(base=160000.0, local=10000.0, keys=_MODERNBERT_BASES),
        _modernbert_classes,
    ),
    write=(
        write_windows("first"),
        write_two_rotations(_MODERNBERT_BASES),
        _write_modernbert_classes,
    ),
    fixed={
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "classifier_activation": "gelu",
    },
    written={"attention_dropout": 0.0, "embedding_dropout": 0.0},
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    buffers=("rotary_emb.inv_freq",),
)

# ---- encoder and decoder ----


def _t5_scale(config: Config, fields: Config) -> None:
    """Logits are scaled where embedding and head were tied in training; files tell it twice."""
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    fields["logit_scale"] = fields["d_model"] ** -0.5 if scaled else None


def _write_t5_scale(config: TransformerConfig, theirs: Config) -> None:
    theirs["scale_decoder_outputs"] = config.logit_scale is not None
    theirs["is_gated_act"] = config.gated
    theirs["dense_act_fn"] = theirs["feed_forward_proj"].removeprefix("gated-")
    if theirs["feed_forward_proj"] == "gated-gelu":
        theirs["dense_act_fn"] = "gelu_new"


def _t5_layer(stack: str, last: int) -> dict[str, str]:
    names = {f"attention.{each}_proj": f"layer.0.SelfAttention.{each}" for each in "qkvo"}
    names["attention_norm"] = "layer.0.layer_norm"
    if stack == "decoder":
        names |= {
            f"cross_attention.{each}_proj": f"layer.1.EncDecAttention.{each}" for each in "qkvo"
        }
        names["cross_attention_norm"] = "layer.1.layer_norm"
    inner = f"layer.{last}.DenseReluDense."
    names["feed_forward.down_proj"] = inner + "wo"
    names["feed_forward_norm"] = f"layer.{last}.layer_norm"
    return _in_layers(names, f"{stack}.layers.{{}}.", f"{stack}.block.{{}}.")


_T5_RULES: dict[Any, Any] = {
    "embedding": "shared",
    **{
        f"{stack}.position": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        for stack in ("encoder", "decoder")
    },
    "encoder.final_norm": "encoder.final_layer_norm",
    "decoder.final_norm": "decoder.final_layer_norm",
    **_t5_layer("encoder", 1),
    **_t5_layer("decoder", 2),
}


def _t5_inner(gated: bool) -> tuple[Rule, ...]:
    table = {}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        ours = f"{stack}.layers.{{}}.feed_forward."
        theirs = f"{stack}.block.{{}}.layer.{last}.DenseReluDense."
        if gated:
            table[f"{ours}gate_proj"] = theirs + "wi_0"
        table[f"{ours}up_proj"] = theirs + ("wi_1" if gated else "wi")
    return rules(table)


def _t5(preset: str, *, gated: bool) -> Family:
    words = (
        {"gated-gelu": "geglu_tanh", "gated-silu": "swiglu", "gated-relu": "reglu"}
        if gated
        else {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}
    )
    return Family(
        preset=preset,
        model_type="t5",
        prefix="",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("d_model", "d_model"),
            Key("d_kv", "head_dim"),
            Key("d_ff", "d_ff"),
            Key("num_layers", "n_layers"),
            Key("num_decoder_layers", "n_decoder_layers", None),
            Key("num_heads", "n_heads"),
            Key("relative_attention_num_buckets", "relative_buckets", 32),
            Key("relative_attention_max_distance", "relative_max_distance", 128),
            Key("layer_norm_epsilon", "norm_eps", 1e-6),
            Key("n_positions", "max_seq_len", 512),
            Key("dropout_rate", "dropout", 0.1),
            Key("feed_forward_proj", "activation", "relu", words),
            Key("tie_word_embeddings", "tie_embeddings", True),
        ),
        kinds={"T5ForConditionalGeneration": Kind({}, rules({"head": "lm_head"}))},
        rules=(*rules(_T5_RULES), *_t5_inner(gated)),
        read=(_t5_scale,),
        write=(_write_t5_scale,),
        written={"is_encoder_decoder": True},
        copies={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
            "lm_head.weight": "shared.weight",
        },
        # Of T5 1.0's first files; nothing reads it.
        buffers=("EncDecAttention.relative_attention_bias.weight",),
    )


T5 = _t5("t5", gated=False)
T5_V1_1 = _t5("t5_v1_1", gated=True)


def _bart_layer(stack: str) -> dict[str, str]:
    names = {}
    parts = [("attention", "self_attn")]
    parts += [("cross_attention", "encoder_attn")] if stack == "decoder" else []
    for ours, theirs in parts:
        names |= {f"{ours}.{each}_proj": f"{theirs}.{each}_proj" for each in "qkv"}
        names[f"{ours}.o_proj"] = f"{theirs}.out_proj"
        names[f"{ours}_norm"] = f"{theirs}_layer_norm"
    names["feed_forward.up_proj"] = "fc1"
    names["feed_forward.down_proj"] = "fc2"
    names["feed_forward_norm"] = "final_layer_norm"
    return _in_layers(names, f"{stack}.layers.{{}}.", f"model.{stack}.layers.{{}}.")


def _bart_keys(activation: str, positions: int) -> tuple[Key, ...]:
    return (
        Key("d_model", "d_model"),
        Key("encoder_layers", "n_layers"),
        Key("decoder_layers", "n_decoder_layers"),
        Key("encoder_attention_heads", "n_heads"),
        Key("encoder_ffn_dim", "d_ff"),
        Key("max_position_embeddings", "max_seq_len", positions),
        Key("activation_function", "activation", activation, _PLAIN),
        Key("dropout", "dropout", 0.1),
        Key("tie_word_embeddings", "tie_embeddings", True),
    )


def _bart_stacks(scaled: bool) -> Reader:
    def read(config: Config, fields: Config) -> None:
        """Both stacks must be of one width; embeddings may be scaled."""
        for name in ("attention_heads", "ffn_dim"):
            one, other = (config.get(f"{stack}_{name}") for stack in ("encoder", "decoder"))
            if other is not None and one != other:
                raise UserError(f"encoder_{name}={one!r} and decoder_{name}={other!r} must be same")
        scale = config.get("scale_embedding", scaled)
        fields["embedding_scale"] = fields["d_model"] ** 0.5 if scale else None

    return read


def _write_bart_stacks(config: TransformerConfig, theirs: Config) -> None:
    theirs["decoder_attention_heads"] = config.n_heads
    theirs["decoder_ffn_dim"] = config.ff_width
    theirs["scale_embedding"] = config.embedding_scale is not None


_BART_COPIES = {
    "model.encoder.embed_tokens.weight": "model.shared.weight",
    "model.decoder.embed_tokens.weight": "model.shared.weight",
    "lm_head.weight": "model.shared.weight",
}
_BART_LAYERS = {**_bart_layer("encoder"), **_bart_layer("decoder")}
_BART_WRITTEN = {
    "is_encoder_decoder": True,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
_BART_FIXED = {"normalize_before": False, "add_final_layer_norm": False}
_BART_HEAD = rules({"head.bias": ("final_logits_bias", OneRow()), "head.weight": "lm_head.weight"})
_FROM_VOCABULARY = (Key("vocab_size", "vocab_size"),)

BART = Family(
    preset="bart",
    model_type="bart",
    keys=(*_FROM_VOCABULARY, *_bart_keys("gelu", 1024)),
    kinds={"BartForConditionalGeneration": Kind({}, _BART_HEAD)},
    rules=rules(
        {
            "embedding": "model.shared",
            **{
                f"{stack}.position": (f"model.{stack}.embed_positions", AfterRows(2))
                for stack in ("encoder", "decoder")
            },
            "encoder.embedding_norm": "model.encoder.layernorm_embedding",
            "decoder.embedding_norm": "model.decoder.layernorm_embedding",
            **_BART_LAYERS,
        }
    ),
    read=(_no_fixed_heads, _bart_stacks(False)),
    write=(_write_bart_stacks,),
    fixed={**_BART_FIXED, "static_position_embeddings": False, "normalize_embedding": True},
    written=_BART_WRITTEN,
    copies=_BART_COPIES,
)


def _marian_vocabularies(config: Config, fields: Config) -> None:
    if config.get("share_encoder_decoder_embeddings", True):
        return
    fields["source_vocab_size"] = fields["vocab_size"]
    fields["vocab_size"] = config.get("decoder_vocab_size") or fields["vocab_size"]


def _write_marian_vocabularies(config: TransformerConfig, theirs: Config) -> None:
    theirs["decoder_vocab_size"] = config.vocab_size
    theirs["vocab_size"] = config.source_vocab_size or config.vocab_size
    theirs["share_encoder_decoder_embeddings"] = config.source_vocab_size is None


MARIAN = Family(
    preset="marian",
    model_type="marian",
    keys=(*_FROM_VOCABULARY, *_bart_keys("gelu", 1024)),
    kinds={"MarianMTModel": Kind({}, _BART_HEAD)},
    rules=rules(
        {
            "embedding": "model.shared",
            "source_embedding": "model.encoder.embed_tokens",
            **_BART_LAYERS,
        }
    ),
    read=(_no_fixed_heads, _bart_stacks(False), _marian_vocabularies),
    write=(_write_bart_stacks, _write_marian_vocabularies),
    fixed={**_BART_FIXED, "static_position_embeddings": True, "normalize_embedding": False},
    written=_BART_WRITTEN,
    copies=_BART_COPIES,
    buffers=("embed_positions.weight",),
)
M2M_100 = Family(
    preset="m2m_100",
    model_type="m2m_100",
    keys=(*_FROM_VOCABULARY, *_bart_keys("relu", 1024)),
    kinds={"M2M100ForConditionalGeneration": Kind({}, rules({"head": "lm_head"}))},
    rules=rules(
        {
            "embedding": "model.shared",
            "encoder.final_norm": "model.encoder.layer_norm",
            "decoder.final_norm": "model.decoder.layer_norm",
            **_BART_LAYERS,
        }
    ),
    read=(_no_fixed_heads, _bart_stacks(True)),
    write=(_write_bart_stacks,),
    fixed={"pad_token_id": 1},
    written=_BART_WRITTEN,
    copies=_BART_COPIES,
    buffers=("embed_positions.weights",),
)

# The order in which a model of ours is tried for one that it is.
ALL: tuple[Family, ...] = (
    LLAMA,
    GPT2,
    GPT_NEOX,
    MISTRAL,
    QWEN2,
    QWEN3,
    OLMO2,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    BERT,
    ROBERTA,
    DISTILBERT,
    MODERNBERT,
    XLM_ROBERTA,
    T5,
    T5_V1_1,
    BART,
    MARIAN,
    M2M_100,
)


def family_of(config: Config) -> Family:
    """The family that a `config.json` names.

    Raises:
        UserError: it names none, or none of ours.
    """
    kind = config.get("model_type")
    known = sorted({family.model_type for family in ALL})
    found = [family for family in ALL if family.model_type == kind]
    if not found:
        raise UserError(f"model_type={kind!r} is none of {', '.join(known)}")
    if kind == "t5":
        gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
        return T5_V1_1 if gated else T5
    return found[0]
