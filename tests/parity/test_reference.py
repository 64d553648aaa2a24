"""Logits of the reference against those of Hugging Face's models.

Each model has random weights and a tiny config; nothing is downloaded. This file renames the
weights itself, so that it does not depend on the importer.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import pytest
import torch

from miniformer.config.architectures import (
    ARCHITECTURES,
    SEQ2SEQ_ARCHITECTURES,
    architecture_config,
)
from tests.reference import transformer as reference

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # for deprecations in transformers

V, D, F, H, K, E = 37, 24, 20, 4, 2, 8
PAD, LENGTH, SHORT = 1, 12, 8  # RoBERTa reads positions off the padding token
EPS = 0.01  # large, so that it matters where it is added

# Every field at the default of the specification, nulls filled.
DEFAULTS = {
    "rotary_pct": 1.0,
    "rotary_base": 10000.0,
    "rotary_base_local": None,
    "rotary_scaling": None,
    "parallel_residual": False,
    "qk_norm": None,
    "sliding_window": None,
    "window_pattern": None,
    "logit_softcap": None,
    "final_softcap": None,
    "attention_sinks": False,
    "attention_scale": None,
    "embedding_norm": False,
    "embedding_scale": None,
    "token_types": None,
    "head": "linear",
    "head_bias": False,
    "logit_scale": None,
    "input_dim": None,
    "output_dim": None,
    "pooling": "mean",
}
SIZES = {
    "vocab_size": V,
    "d_model": D,
    "n_heads": H,
    "n_kv_heads": H,
    "head_dim": D // H,
    "d_ff": F,
    "n_layers": 2,
    "norm_eps": EPS,
}
GROUPED = SIZES | {"n_kv_heads": K, "head_dim": E}
TOKENS = {"vocab_size": V, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
BLOCK = {
    **TOKENS,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": 2,
    "num_attention_heads": H,
    "max_position_embeddings": 32,
}
LLAMA = {**BLOCK, "num_key_value_heads": K, "head_dim": E, "rms_norm_eps": EPS}
ENCODER = {**BLOCK, "hidden_act": "gelu", "layer_norm_eps": EPS}
BART = {
    **TOKENS,
    "d_model": D,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": H,
    "decoder_attention_heads": H,
    "encoder_ffn_dim": F,
    "decoder_ffn_dim": F,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {
    **TOKENS,
    "d_model": D,
    "d_kv": E,
    "d_ff": F,
    "num_heads": H,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "layer_norm_epsilon": EPS,
    "relative_attention_num_buckets": 8,  # few and near, so that every kind of bucket is met
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": 2,
}

LLAMA_NAMES = [
    ("model.embed_tokens.", "embedding."),
    ("model.layers.", "layers."),
    ("model.norm.", "final_norm."),
    (".self_attn.", ".attention."),
    (".mlp.", ".feed_forward."),
    (".input_layernorm.", ".attention_norm."),
    (".post_attention_layernorm.", ".feed_forward_norm."),
    ("lm_head.", "head."),
]
SANDWICH_NAMES = [
    (".post_attention_layernorm.", ".attention_out_norm."),
    (".pre_feedforward_layernorm.", ".feed_forward_norm."),
    (".post_feedforward_layernorm.", ".feed_forward_out_norm."),
    *LLAMA_NAMES,
]
GPT2_NAMES = [
    ("transformer.wte.", "embedding."),
    ("transformer.wpe.", "position."),
    ("transformer.h.", "layers."),
    ("transformer.ln_f.", "final_norm."),
    (".ln_1.", ".attention_norm."),
    (".ln_2.", ".feed_forward_norm."),
    (".attn.c_proj.", ".attention.o_proj."),
    (".mlp.c_fc.", ".feed_forward.up_proj."),
    (".mlp.c_proj.", ".feed_forward.down_proj."),
]
NEOX_NAMES = [
    ("gpt_neox.embed_in.", "embedding."),
    ("transformer.word_embeddings.", "embedding."),
    ("transformer.word_embeddings_layernorm.", "embedding_norm."),
    ("gpt_neox.layers.", "layers."),
    ("transformer.h.", "layers."),
    ("gpt_neox.final_layer_norm.", "final_norm."),
    ("transformer.ln_f.", "final_norm."),
    (".self_attention.", ".attention."),
    (".attention.dense.", ".attention.o_proj."),
    (".input_layernorm.", ".attention_norm."),
    (".post_attention_layernorm.", ".feed_forward_norm."),
    (".mlp.dense_h_to_4h.", ".feed_forward.up_proj."),
    (".mlp.dense_4h_to_h.", ".feed_forward.down_proj."),
    ("lm_head.", "head."),
]
BERT_NAMES = [
    ("roberta.", "bert."),
    ("bert.embeddings.word_embeddings.", "embedding."),
    ("bert.embeddings.position_embeddings.", "position."),
    ("bert.embeddings.token_type_embeddings.", "type_embedding."),
    ("bert.embeddings.LayerNorm.", "embedding_norm."),
    ("bert.encoder.layer.", "layers."),
    (".attention.self.query.", ".attention.q_proj."),
    (".attention.self.key.", ".attention.k_proj."),
    (".attention.self.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".attention.output.LayerNorm.", ".attention_norm."),
    (".intermediate.dense.", ".feed_forward.up_proj."),
    (".output.dense.", ".feed_forward.down_proj."),
    (".output.LayerNorm.", ".feed_forward_norm."),
    ("cls.predictions.transform.dense.", "head.dense."),
    ("cls.predictions.transform.LayerNorm.", "head.norm."),
    ("cls.predictions.bias", "head.bias"),
    ("lm_head.dense.", "head.dense."),
    ("lm_head.layer_norm.", "head.norm."),
    ("lm_head.bias", "head.bias"),
]
DISTILBERT_NAMES = [
    ("distilbert.embeddings.word_embeddings.", "embedding."),
    ("distilbert.embeddings.position_embeddings.", "position."),
    ("distilbert.embeddings.LayerNorm.", "embedding_norm."),
    ("distilbert.transformer.layer.", "layers."),
    *((f".attention.{part}_lin.", f".attention.{part}_proj.") for part in "qkv"),
    (".attention.out_lin.", ".attention.o_proj."),
    (".sa_layer_norm.", ".attention_norm."),
    (".ffn.lin1.", ".feed_forward.up_proj."),
    (".ffn.lin2.", ".feed_forward.down_proj."),
    (".output_layer_norm.", ".feed_forward_norm."),
    ("vocab_transform.", "head.dense."),
    ("vocab_layer_norm.", "head.norm."),
    ("vocab_projector.", "head."),
]
MODERNBERT_NAMES = [
    ("model.embeddings.tok_embeddings.", "embedding."),
    ("model.embeddings.norm.", "embedding_norm."),
    ("model.layers.", "layers."),
    ("model.final_norm.", "final_norm."),
    (".attn_norm.", ".attention_norm."),
    (".mlp_norm.", ".feed_forward_norm."),
    (".attn.Wo.", ".attention.o_proj."),
    (".mlp.Wo.", ".feed_forward.down_proj."),
    ("head.dense.", "head.dense."),
    ("head.norm.", "head.norm."),
    ("decoder.bias", "head.bias"),
]
T5_NAMES = [
    ("shared.", "embedding."),
    ("block.0.layer.0.SelfAttention.relative_attention_bias.", "position."),
    (".block.", ".layers."),
    (".layer.0.SelfAttention.", ".attention."),
    (".layer.0.layer_norm.", ".attention_norm."),
    (".layer.1.EncDecAttention.", ".cross_attention."),
    (".final_layer_norm.", ".final_norm."),
    (".wi.", ".up_proj."),
    (".wi_0.", ".gate_proj."),
    (".wi_1.", ".up_proj."),
    (".wo.", ".down_proj."),
    *((f"attention.{part}.", f"attention.{part}_proj.") for part in "qkvo"),
    ("lm_head.", "head."),
]
BART_NAMES = [
    ("model.shared.", "embedding."),
    ("model.encoder.", "encoder."),
    ("model.decoder.", "decoder."),
    (".embed_positions.", ".position."),
    (".layernorm_embedding.", ".embedding_norm."),
    (".self_attn.out_proj.", ".attention.o_proj."),
    (".self_attn.", ".attention."),
    (".self_attn_layer_norm.", ".attention_norm."),
    (".encoder_attn.out_proj.", ".cross_attention.o_proj."),
    (".encoder_attn.", ".cross_attention."),
    (".encoder_attn_layer_norm.", ".cross_attention_norm."),
    (".fc1.", ".feed_forward.up_proj."),
    (".fc2.", ".feed_forward.down_proj."),
    (".final_layer_norm.", ".feed_forward_norm."),
    ("coder.layer_norm.", "coder.final_norm."),
]


def split_tensors(weights, fused, parts, split):
    """Splits each tensor whose name has `fused` into tensors with the names of `parts`."""
    result = {}
    for name, tensor in weights.items():
        if fused not in name:
            result[name] = tensor
            continue
        for part, piece in zip(parts, split(tensor), strict=True):
            result[name.replace(fused, part)] = piece
    return result


def projections(*parts):
    return [f".attention.{part}_proj." for part in parts]


def from_gpt2(weights):
    weights = split_tensors(
        weights, ".attn.c_attn.", projections(*"qkv"), lambda tensor: tensor.chunk(3, dim=-1)
    )
    return {
        name: tensor.T if name.endswith("_proj.weight") else tensor
        for name, tensor in weights.items()
    }


def from_neox(weights, heads=H):
    def of_all_heads(tensor):
        return (part.flatten(0, 1) for part in tensor.unflatten(0, (heads, 3, -1)).unbind(1))

    return split_tensors(weights, ".attention.query_key_value.", projections(*"qkv"), of_all_heads)


def from_bloom(weights):
    return from_neox(weights, heads=6)


def from_phi3(weights):
    sizes = [H * E, K * E, K * E]
    weights = split_tensors(
        weights, ".attention.qkv_proj.", projections(*"qkv"), lambda x: x.split(sizes)
    )
    halves = [".feed_forward.gate_proj.", ".feed_forward.up_proj."]
    return split_tensors(weights, ".feed_forward.gate_up_proj.", halves, lambda x: x.chunk(2))


def from_modernbert(weights):
    weights = split_tensors(weights, ".attn.Wqkv.", projections(*"qkv"), lambda x: x.chunk(3))
    halves = [".feed_forward.gate_proj.", ".feed_forward.up_proj."]
    return split_tensors(weights, ".mlp.Wi.", halves, lambda x: x.chunk(2))


def without_two_positions(weights):
    return {
        name: tensor[2:] if name.endswith("position.weight") else tensor
        for name, tensor in weights.items()
    }


def from_t5(weights):
    """The feed-forward is the last sub-layer: the second in the encoder, else the third."""
    result = {}
    for name, tensor in weights.items():
        last = ".layer.1." if name.startswith("encoder.") else ".layer.2."
        name = name.replace(last + "DenseReluDense.", ".feed_forward.")
        name = name.replace(last + "layer_norm.", ".feed_forward_norm.")
        result[name.replace(".layer.1.layer_norm.", ".cross_attention_norm.")] = tensor
    return result


def from_bart(weights):
    weights["head.bias"] = weights.pop("final_logits_bias")[0]
    return without_two_positions(weights)


def from_marian(weights):
    weights["head.bias"] = weights.pop("final_logits_bias")[0]
    return weights


@dataclasses.dataclass
class Case:
    """An architecture: the model and config of transformers, our settings, and a renaming."""

    model: str
    config: dict
    settings: dict
    names: list
    convert: Callable = lambda weights: weights


def rotary(base, **scaling):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **scaling}}


def llama_like(name, model, names=LLAMA_NAMES, convert=lambda weights: weights, **changes):
    """An architecture with Llama's config; changes: (theirs, ours)."""
    theirs, ours = changes.get("theirs", {}), changes.get("ours", {})
    base = rotary(ARCHITECTURES[name]["rotary_base"])
    tied = {"tie_word_embeddings": ARCHITECTURES[name]["tie_embeddings"]}
    return Case(
        model,
        LLAMA | base | tied | theirs,
        architecture_config(name, **GROUPED | ours),
        names,
        convert,
    )


CASES = {
    "gpt2": Case(
        "GPT2LMHeadModel",
        TOKENS
        | {"n_embd": D, "n_head": H, "n_layer": 2, "n_inner": F, "n_positions": 32}
        | {"layer_norm_epsilon": EPS},
        architecture_config("gpt2", **SIZES),
        GPT2_NAMES,
        from_gpt2,
    ),
    "gpt_neox": Case(
        "GPTNeoXForCausalLM",
        # Twice the usual quarter of a wider head, so that two pairs turn.
        ENCODER | rotary(10000.0, partial_rotary_factor=0.5) | {"hidden_size": 32},
        architecture_config(
            "gpt_neox", **SIZES | {"d_model": 32, "head_dim": 8, "rotary_pct": 0.5}
        ),
        NEOX_NAMES,
        from_neox,
    ),
    "llama": llama_like("llama", "LlamaForCausalLM"),
    "mistral": llama_like(
        "mistral",
        "MistralForCausalLM",
        theirs={"sliding_window": 5},
        ours={"sliding_window": 5},
    ),
    "qwen2": llama_like("qwen2", "Qwen2ForCausalLM"),
    "qwen3": llama_like("qwen3", "Qwen3ForCausalLM"),
    "gemma": llama_like("gemma", "GemmaForCausalLM"),
    "gemma2": llama_like(
        "gemma2",
        "Gemma2ForCausalLM",
        SANDWICH_NAMES,
        # Caps so low that they bend the scores of a tiny model.
        theirs={
            "sliding_window": 5,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 3.0,
        },
        ours={
            "sliding_window": 5,
            "query_pre_attn_scalar": 5,
            "logit_softcap": 1.5,
            "final_softcap": 3.0,
        },
    ),
    # Of its two rotations only one is scaled.
    "gemma3": Case(
        "Gemma3ForCausalLM",
        LLAMA
        | {"sliding_window": 5, "query_pre_attn_scalar": 5, "tie_word_embeddings": True}
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
        architecture_config(
            "gemma3",
            **GROUPED | {"sliding_window": 5, "query_pre_attn_scalar": 5, "window_pattern": "LG"},
            rotary_scaling={"type": "linear", "factor": 8.0},
        ),
        SANDWICH_NAMES,
    ),
    "phi3": llama_like(
        "phi3",
        "Phi3ForCausalLM",
        convert=from_phi3,
        theirs={"sliding_window": 5},
        ours={"sliding_window": 5},
    ),
    "olmo2": llama_like("olmo2", "Olmo2ForCausalLM", SANDWICH_NAMES),
    "bert": Case(
        "BertForMaskedLM",
        ENCODER | {"type_vocab_size": 2},
        architecture_config("bert", **SIZES),
        BERT_NAMES,
    ),
    "roberta": Case(
        "RobertaForMaskedLM",
        ENCODER | {"type_vocab_size": 1},
        architecture_config("roberta", **SIZES),
        BERT_NAMES,
        without_two_positions,
    ),
    "distilbert": Case(
        "DistilBertForMaskedLM",
        TOKENS
        | {"dim": D, "hidden_dim": F, "n_layers": 2, "n_heads": H}
        | {"max_position_embeddings": 32},
        # Their norms' epsilon is fixed.
        architecture_config("distilbert", **SIZES | {"norm_eps": 1e-12}),
        DISTILBERT_NAMES,
    ),
    "modernbert": Case(
        "ModernBertForMaskedLM",
        BLOCK
        | {"num_hidden_layers": 4, "norm_eps": EPS, "local_attention": 6}
        | {"cls_token_id": 2, "sep_token_id": 3},
        architecture_config("modernbert", **SIZES | {"n_layers": 4, "sliding_window": 6})
        # Not a field of the specification: see the table of families.
        | {"first_attention_norm": False},
        MODERNBERT_NAMES,
        from_modernbert,
    ),
    "t5": Case(
        "T5ForConditionalGeneration",
        T5,
        architecture_config(
            "t5",
            **SIZES | {"head_dim": E, "n_decoder_layers": 3},
            relative_buckets=8,
            relative_max_distance=10,
        ),
        T5_NAMES,
        from_t5,
    ),
    "t5_v1_1": Case(
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        architecture_config(
            "t5_v1_1",
            **SIZES | {"head_dim": E, "n_decoder_layers": 3},
            relative_buckets=8,
            relative_max_distance=10,
        ),
        T5_NAMES,
        from_t5,
    ),
    "bart": Case(
        "BartForConditionalGeneration",
        BART,
        # Their norms' epsilon is fixed; their models' bias on the vocabulary is zero, ours random.
        architecture_config(
            "bart", **SIZES | {"n_decoder_layers": 3, "norm_eps": 1e-5, "head_bias": True}
        ),
        BART_NAMES,
        from_bart,
    ),
    "marian": Case(
        "MarianMTModel",
        BART | {"activation_function": "swish", "scale_embedding": True},
        architecture_config("marian", **SIZES | {"n_decoder_layers": 3, "norm_eps": 1e-5}),
        BART_NAMES,
        from_marian,
    ),
    "m2m_100": Case(
        "M2M100ForConditionalGeneration",
        BART | {"activation_function": "relu", "scale_embedding": True},
        architecture_config("m2m_100", **SIZES | {"n_decoder_layers": 3, "norm_eps": 1e-5}),
        BART_NAMES,
    ),
}
# Not families of ours, but they have parts that no family has.
MORE = {
    "bloom: alibi of a number of heads that is no power of two": Case(
        "BloomForCausalLM",
        TOKENS | {"hidden_size": D, "n_head": 6, "n_layer": 2, "layer_norm_epsilon": EPS},
        architecture_config(
            "gpt2",
            **SIZES | {"n_heads": 6, "n_kv_heads": 6, "head_dim": 4, "d_ff": 4 * D},
            position="alibi",
            embedding_norm=True,
        ),
        NEOX_NAMES,
        from_bloom,
    ),
}


@contextlib.contextmanager
def full_precision():
    """Replaces float32 casts of transformers by float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch, "FloatTensor", torch.DoubleTensor)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def build(case):
    """The model of transformers in float64, its weights with our names, and our settings."""
    kind = getattr(transformers, case.model)
    config = kind.config_class(**case.config, attn_implementation="eager")
    with full_precision():
        model = kind(config).double().eval()
    if not case.settings["tie_embeddings"] and model.get_output_embeddings() is not None:
        # transformers ties the head of T5 when built, and unties it when it reads v1.1 weights.
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # Marian's sines are a parameter too
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.normal_()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied = ("lm_head.weight", "decoder.weight", "vocab_projector.weight")
    if case.settings["tie_embeddings"]:
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith(tied)}
    renamed = {}
    for name, tensor in weights.items():
        for theirs, ours in case.names:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    settings = DEFAULTS | case.settings  # biases are where the weights have them
    return model, case.convert(renamed), settings


def rows_of_ids(length=LENGTH, short=SHORT):
    """A full row and a right-padded row."""
    ids = torch.randint(PAD + 1, V, (2, length))
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, short:] = False
    ids[~real] = PAD
    return ids, real


def close(actual, expected, real):
    torch.testing.assert_close(actual[real], expected[real], rtol=1e-6, atol=1e-6)


def row_of(ids, real, row):
    return ids[row], real[row].int().tolist()


def test_reference_families_are_all_compared():
    assert CASES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES if name not in SEQ2SEQ_ARCHITECTURES]
)
def test_reference_logits_of_a_family(name):
    compare(CASES[name])


@pytest.mark.parametrize("name", MORE)
def test_reference_logits_of_other_models(name):
    compare(MORE[name])


def compare(case):
    model, weights, settings = build(case)
    ids, real = rows_of_ids()
    types, extra = None, {}
    if (settings["token_types"] or 1) > 1:
        types = torch.randint(0, settings["token_types"], ids.shape)
        extra = {"token_type_ids": types}
    with torch.no_grad(), full_precision():
        expected = model(input_ids=ids, attention_mask=real.long(), **extra).logits
    rows = [
        reference.logits(
            weights, settings, *row_of(ids, real, row), None if types is None else types[row]
        )
        for row in range(2)
    ]
    close(torch.stack(rows), expected, real)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in SEQ2SEQ_ARCHITECTURES])
def test_reference_logits_of_a_seq2seq_family(name):
    model, weights, settings = build(CASES[name])
    source, real_source = rows_of_ids()
    target, real_target = rows_of_ids(length=11, short=7)
    with torch.no_grad(), full_precision():
        expected = model(
            input_ids=source,
            attention_mask=real_source.long(),
            decoder_input_ids=target,
            decoder_attention_mask=real_target.long(),
        ).logits
    rows = [
        reference.seq2seq_logits(
            weights,
            settings,
            *row_of(source, real_source, row),
            *row_of(target, real_target, row),
        )
        for row in range(2)
    ]
    close(torch.stack(rows), expected, real_target)


# Of the four waves, 6 to 6283 tokens long, each scaling keeps some and stretches others.
SCALINGS = {
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_seq_len": 128,
    },
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_seq_len": 4096},
    "yarn, all said": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_seq_len": 512,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
    },
    "yarn, no wave turns once": {"type": "yarn", "factor": 4.0, "original_max_seq_len": 5},
    "longrope": {
        "type": "longrope",
        "factor": 4.0,
        "original_max_seq_len": 5,
        "short_factors": [1.0, 1.1, 1.2, 1.3],
        "long_factors": [1.5, 2.0, 4.0, 9.0],
    },
    "longrope, a short text": {
        "type": "longrope",
        "factor": 4.0,
        "original_max_seq_len": 99,
        "short_factors": [1.0, 1.1, 1.2, 1.3],
        "long_factors": [1.5, 2.0, 4.0, 9.0],
        "attention_factor": 1.7,
    },
    "dynamic": {"type": "dynamic", "factor": 4.0, "original_max_seq_len": SHORT},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_reference_logits_under_rotary_scaling(kind):
    theirs = {
        {
            "type": "rope_type",
            "original_max_seq_len": "original_max_position_embeddings",
            "short_factors": "short_factor",
            "long_factors": "long_factor",
        }.get(name, name): value
        for name, value in SCALINGS[kind].items()
    }
    lengths = {"max_position_embeddings": SHORT if kind == "dynamic" else 4 * 4096}
    case = llama_like(
        "llama",
        "LlamaForCausalLM",
        theirs=rotary(10000.0, **theirs) | lengths,
        ours={"rotary_base": 10000.0, "rotary_scaling": SCALINGS[kind]},
    )
    if kind != "dynamic":
        compare(case)
        return
    # transformers takes the length of the padded batch, this model that of each row.
    model, weights, settings = build(case)
    for length in (LENGTH, SHORT - 2):
        ids = torch.randint(PAD + 1, V, (1, length))
        with torch.no_grad(), full_precision():
            expected = model(input_ids=ids).logits[0]
        actual = reference.logits(weights, settings, ids[0], [1] * length)
        close(actual, expected, slice(None))


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last", "mean+max"])
def test_reference_pooled_outputs(pooling):
    case = dataclasses.replace(CASES["llama"], model="LlamaForSequenceClassification")
    case.config = case.config | {"num_labels": 3}
    case.settings = case.settings | {"output_dim": 3, "pooling": pooling}
    case.names = [*LLAMA_NAMES, ("score.", "head.")]
    model, weights, settings = build(case)
    ids, real = rows_of_ids()
    with torch.no_grad(), full_precision():
        own = model(input_ids=ids, attention_mask=real.long()).logits  # of the last real token
        x = model.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        expected = {
            "mean": [model.score(x[row, real[row]].mean(dim=0)) for row in range(2)],
            "max": [model.score(x[row, real[row]].max(dim=0).values) for row in range(2)],
            "mean+max": [
                model.score(
                    (x[row, real[row]].mean(dim=0) + x[row, real[row]].max(dim=0).values) / 2
                )
                for row in range(2)
            ],
            "first": model.score(x[:, 0]),
            "last": own,
        }[pooling]
    for row in range(2):
        actual = reference.pooled(weights, settings, *row_of(ids, real, row))
        close(actual, expected[row], slice(None))


@pytest.mark.parametrize("window", [None, 5])
def test_reference_attention_with_sinks(window):
    """Only the attention of gpt-oss: its mixture of experts is not supported."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

    config = transformers.GptOssConfig(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=E,
        num_hidden_layers=1,
        attn_implementation="eager",
    )
    module = GptOssAttention(config, 0).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(LENGTH, D, dtype=torch.float64)
    at = torch.arange(LENGTH)
    sees = at[None, :] <= at[:, None]
    if window is not None:
        sees &= at[:, None] - at[None, :] < window
    mask = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64).masked_fill(~sees, -1e300)
    unturned = torch.ones(1, LENGTH, E // 2).double(), torch.zeros(1, LENGTH, E // 2).double()
    with torch.no_grad():
        expected = module(x[None], unturned, mask)[0][0]
    settings = DEFAULTS | GROUPED | {"position": "none", "causal": True, "attention_sinks": True}
    settings["sliding_window"] = window
    weights = module.state_dict()
    visible = reference.visible_keys(
        settings, list(range(LENGTH)), [1] * LENGTH, window is not None
    )
    actual = reference.attention(weights, settings, "", x, x, visible, sinks=weights["sinks"])
    close(actual, expected, slice(None))


def test_architecture_config_needs_name_and_width():
    with pytest.raises(ValueError, match="did you mean 'mistral'"):
        architecture_config("mistrel")
    with pytest.raises(ValueError, match="needs d_model"):
        architecture_config("gemma")
    assert architecture_config("gemma", embedding_scale=2.0)["embedding_scale"] == 2.0
