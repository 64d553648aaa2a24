"""T5, BART, Marian, M2M-100."""

from __future__ import annotations

import dataclasses

from miniformer.config import TransformerConfig, UserError
from miniformer.interop.hf.configs import Config, ConfigKey, Family, ModelClass, Reader
from miniformer.interop.hf.families.tables import (
    ACTIVATIONS,
    no_head_dim,
    seq2seq_token_ids,
)
from miniformer.interop.hf.weights import ONE_ROW, NameTable, Rule, skip_leading_rows


def _read_t5_scale(config: Config, fields: Config) -> None:
    """Scales logits if embedding and head were tied in training; two keys may set it."""
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    fields["logit_scale"] = fields["d_model"] ** -0.5 if scaled else None


def _write_t5_scale(config: TransformerConfig, hf_config: Config) -> None:
    hf_config["scale_decoder_outputs"] = config.logit_scale is not None
    hf_config["is_gated_act"] = config.is_gated
    hf_config["dense_act_fn"] = hf_config["feed_forward_proj"].removeprefix("gated-")
    if hf_config["feed_forward_proj"] == "gated-gelu":
        hf_config["dense_act_fn"] = "gelu_new"


def _t5_stack(stack: str, *, gated: bool) -> NameTable:
    """Names of the weights of encoder or decoder."""
    index = 1 if stack == "encoder" else 2  # of the feed-forward in a layer
    names = {f"attention.{name}_proj": f"0.SelfAttention.{name}" for name in "qkvo"}
    names["attention_norm"] = "0.layer_norm"
    if stack == "decoder":
        names |= {f"cross_attention.{name}_proj": f"1.EncDecAttention.{name}" for name in "qkvo"}
        names["cross_attention_norm"] = "1.layer_norm"
    inner = f"{index}.DenseReluDense"
    names |= {"feed_forward.gate_proj": f"{inner}.wi_0"} if gated else {}
    names["feed_forward.up_proj"] = f"{inner}.{'wi_1' if gated else 'wi'}"
    names["feed_forward.down_proj"] = f"{inner}.wo"
    names["feed_forward_norm"] = f"{index}.layer_norm"
    return {
        f"{stack}.position": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{stack}.final_norm": f"{stack}.final_layer_norm",
        **{
            f"{stack}.layers.{{}}.{name}": f"{stack}.block.{{}}.layer.{hf_name}"
            for name, hf_name in names.items()
        },
    }


def _t5(preset: str, *, gated: bool) -> Family:
    activations = (
        {"gated-gelu": "geglu_tanh", "gated-silu": "swiglu", "gated-relu": "reglu"}
        if gated
        else {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}
    )
    return Family(
        preset=preset,
        model_type="t5",
        prefix="",
        keys=(
            ConfigKey("vocab_size", "vocab_size"),
            ConfigKey("d_model", "d_model"),
            ConfigKey("d_kv", "head_dim"),
            ConfigKey("d_ff", "d_ff"),
            ConfigKey("num_layers", "n_layers"),
            ConfigKey("num_decoder_layers", "n_decoder_layers", None, nullable=True),
            ConfigKey("num_heads", "n_heads"),
            ConfigKey("relative_attention_num_buckets", "relative_buckets", 32),
            ConfigKey("relative_attention_max_distance", "relative_max_distance", 128),
            ConfigKey("layer_norm_epsilon", "norm_eps", 1e-6),
            ConfigKey("n_positions", "max_seq_len", 512),
            ConfigKey("dropout_rate", "dropout", 0.1),
            ConfigKey("feed_forward_proj", "activation", "relu", activations),
            ConfigKey("tie_word_embeddings", "tie_embeddings", True),
        ),
        model_classes={"T5ForConditionalGeneration": ModelClass({}, {"head": "lm_head"})},
        weights={
            "embedding": "shared",
            **_t5_stack("encoder", gated=gated),
            **_t5_stack("decoder", gated=gated),
        },
        read=(_read_t5_scale,),
        write=(_write_t5_scale,),
        constants={"is_encoder_decoder": True},
        ids=seq2seq_token_ids(eos=1, pad=0),
        tied_weights={
            "encoder.embed_tokens.weight": ("shared.weight",),
            "decoder.embed_tokens.weight": ("shared.weight",),
            "lm_head.weight": ("shared.weight",),
        },
        # In early files of T5 1.0; transformers ignores it.
        ignored_suffixes=("EncDecAttention.relative_attention_bias.weight",),
    )


T5 = _t5("t5", gated=False)
T5_V1_1 = _t5("t5_v1_1", gated=True)


def _bart_layer(stack: str) -> NameTable:
    names: dict[str, str] = {}
    modules = [("attention", "self_attn")]
    modules += [("cross_attention", "encoder_attn")] if stack == "decoder" else []
    for module, hf_name in modules:
        names |= {f"{module}.{name}_proj": f"{hf_name}.{name}_proj" for name in "qkv"}
        names[f"{module}.o_proj"] = f"{hf_name}.out_proj"
        names[f"{module}_norm"] = f"{hf_name}_layer_norm"
    names["feed_forward.up_proj"] = "fc1"
    names["feed_forward.down_proj"] = "fc2"
    names["feed_forward_norm"] = "final_layer_norm"
    prefix = f"{stack}.layers.{{}}."
    return {prefix + name: f"model.{prefix}{hf_name}" for name, hf_name in names.items()}


def _bart_keys(activation: str) -> tuple[ConfigKey, ...]:
    return (
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("d_model", "d_model"),
        ConfigKey("encoder_layers", "n_layers"),
        ConfigKey("decoder_layers", "n_decoder_layers"),
        ConfigKey("encoder_attention_heads", "n_heads"),
        ConfigKey("encoder_ffn_dim", "d_ff"),
        ConfigKey("max_position_embeddings", "max_seq_len", 1024),
        ConfigKey("activation_function", "activation", activation, ACTIVATIONS),
        ConfigKey("dropout", "dropout", 0.1),
        ConfigKey("tie_word_embeddings", "tie_embeddings", True),
    )


def _read_bart_stacks(scale_embedding: bool) -> Reader:
    def read(config: Config, fields: Config) -> None:
        """Checks that both stacks have the same width, and reads the embedding scale."""
        for name, default in (("attention_heads", 16), ("ffn_dim", 4096)):
            encoder, decoder = config[f"encoder_{name}"], config.get(f"decoder_{name}", default)
            if encoder != decoder:
                raise UserError(
                    f"encoder_{name}={encoder!r} and decoder_{name}={decoder!r} must be equal"
                )
        scale = config.get("scale_embedding", scale_embedding)
        fields["embedding_scale"] = fields["d_model"] ** 0.5 if scale else None

    return read


def _write_bart_stacks(config: TransformerConfig, hf_config: Config) -> None:
    hf_config["decoder_attention_heads"] = config.n_heads
    hf_config["decoder_ffn_dim"] = config.ff_width
    hf_config["scale_embedding"] = config.embedding_scale is not None


_BART_TIED_WEIGHTS = {
    "model.encoder.embed_tokens.weight": ("model.shared.weight",),
    "model.decoder.embed_tokens.weight": ("model.shared.weight",),
    "lm_head.weight": ("model.shared.weight",),
}
_BART_LAYERS = {**_bart_layer("encoder"), **_bart_layer("decoder")}
_BART_CONSTANTS = {
    "is_encoder_decoder": True,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
_BART_FIXED = {"normalize_before": False, "add_final_layer_norm": False}
_BART_HEAD: NameTable = {
    "head.bias": ("final_logits_bias", ONE_ROW),
    "head.weight": "lm_head.weight",
}

BART = Family(
    preset="bart",
    model_type="bart",
    keys=_bart_keys("gelu"),
    model_classes={"BartForConditionalGeneration": ModelClass({}, _BART_HEAD)},
    weights={
        "embedding": "model.shared",
        **{
            f"{stack}.position": (f"model.{stack}.embed_positions", skip_leading_rows(2))
            for stack in ("encoder", "decoder")
        },
        "encoder.embedding_norm": "model.encoder.layernorm_embedding",
        "decoder.embedding_norm": "model.decoder.layernorm_embedding",
        **_BART_LAYERS,
    },
    read=(no_head_dim, _read_bart_stacks(False)),
    write=(_write_bart_stacks,),
    fixed={**_BART_FIXED, "static_position_embeddings": False, "normalize_embedding": True},
    weight_only_fields=("head_bias",),
    constants=_BART_CONSTANTS,
    ids=seq2seq_token_ids(bos=0, eos=2, pad=1, decoder_start=2, forced_eos=2),
    tied_weights=_BART_TIED_WEIGHTS,
)


def _read_marian_vocab(config: Config, fields: Config) -> None:
    if config.get("share_encoder_decoder_embeddings", True):
        return
    fields["source_vocab_size"] = fields["vocab_size"]
    fields["vocab_size"] = config.get("decoder_vocab_size") or fields["vocab_size"]


def _write_marian_vocab(config: TransformerConfig, hf_config: Config) -> None:
    hf_config["decoder_vocab_size"] = config.vocab_size
    hf_config["vocab_size"] = config.source_vocab_size or config.vocab_size
    hf_config["share_encoder_decoder_embeddings"] = config.source_vocab_size is None


def _adapt_marian_embedding(config: TransformerConfig, rule: Rule) -> Rule:
    if rule.names == ("embedding",) and config.source_vocab_size is not None:
        return dataclasses.replace(rule, hf_name="model.decoder.embed_tokens")
    return rule


MARIAN = Family(
    preset="marian",
    model_type="marian",
    keys=_bart_keys("gelu"),
    model_classes={"MarianMTModel": ModelClass({}, _BART_HEAD)},
    weights={
        "embedding": "model.shared",
        "source_embedding": "model.encoder.embed_tokens",
        **_BART_LAYERS,
    },
    read=(no_head_dim, _read_bart_stacks(False), _read_marian_vocab),
    write=(_write_bart_stacks, _write_marian_vocab),
    fixed={**_BART_FIXED, "static_position_embeddings": True, "normalize_embedding": False},
    constants=_BART_CONSTANTS,
    ids=seq2seq_token_ids(eos=0, pad=58100, decoder_start=58100, forced_eos=0),
    adapt_rule=_adapt_marian_embedding,
    tied_weights={
        **_BART_TIED_WEIGHTS,
        "lm_head.weight": ("model.shared.weight", "model.decoder.embed_tokens.weight"),
    },
    ignored_suffixes=("embed_positions.weight",),
)
M2M_100 = Family(
    preset="m2m_100",
    model_type="m2m_100",
    keys=_bart_keys("relu"),
    model_classes={"M2M100ForConditionalGeneration": ModelClass({}, {"head": "lm_head"})},
    weights={
        "embedding": "model.shared",
        "encoder.final_norm": "model.encoder.layer_norm",
        "decoder.final_norm": "model.decoder.layer_norm",
        **_BART_LAYERS,
    },
    read=(no_head_dim, _read_bart_stacks(True)),
    write=(_write_bart_stacks,),
    fixed={"pad_token_id": 1},
    ids=seq2seq_token_ids(bos=0, eos=2, pad=1, decoder_start=2),
    constants=_BART_CONSTANTS,
    tied_weights=_BART_TIED_WEIGHTS,
    ignored_suffixes=("embed_positions.weights",),
)
