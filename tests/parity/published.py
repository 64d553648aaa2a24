"""Tiny random Hugging Face models of every family, with random values of their config fields.

`NOT_DRAWN` says of every other field of a family's config class why it is not drawn.
"""

import random

V = 300
IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
LENGTH = 12
GATES = ["silu", "gelu", "gelu_pytorch_tanh", "relu"]
PLAIN = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]


def draw(name, number):
    """(class name, config) of a family with random shapes, tying, windows and rotary embeddings."""
    rng = random.Random(f"{name} {number}")
    return FAMILIES[name](rng)


def sizes(rng, *, even):
    """Model width, heads and feed-forward width; rotary embeddings get an even head width."""
    heads = rng.choice([2, 3, 4])
    item = rng.choice([4, 6, 10] if even else [3, 5, 7, 8])
    return {"heads": heads, "each": item, "d": heads * item, "inner": rng.choice([17, 20, 33])}


def chance(rng, share=0.5):
    return rng.random() < share


def vocabulary(rng):
    """Vocabulary size and special token ids."""
    return {
        "vocab_size": rng.choice([V, V + 9]), "pad_token_id": rng.choice([0, 1]),
        "bos_token_id": rng.choice([2, 4]), "eos_token_id": rng.choice([3, 5]),
    }  # fmt: skip


def lengths(rng):
    return {"max_position_embeddings": rng.choice([32, 40])}


def rotation(rng, base=10000.0, **more):
    """Rotary embeddings with one base, optionally scaled."""
    kind = rng.choice(["default", "linear", "dynamic", "yarn", "llama3"])
    extra = {
        "default": {},
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
        "llama3": {
            "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    }[kind]  # fmt: skip
    return {"rope_type": kind, "rope_theta": rng.choice([base, 500.0]), **extra, **more}


def two_rotations(rng, base, local):
    """Rotary embeddings of full layers, optionally scaled, and of sliding-window layers."""
    far = rng.choice([{"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}])
    return {
        "full_attention": {**far, "rope_theta": rng.choice([base, 1000.0])},
        "sliding_attention": {"rope_type": "default", "rope_theta": rng.choice([local, 100.0])},
    }


def decoder(rng, *, own_head=True, act="hidden_act", biased=False):
    size = sizes(rng, even=True)
    config = {
        **vocabulary(rng), **lengths(rng), "hidden_size": size["d"],
        "intermediate_size": size["inner"], "num_hidden_layers": rng.choice([2, 3]),
        "num_attention_heads": size["heads"],
        "num_key_value_heads": rng.choice([k for k in (1, 2, 3, 4) if size["heads"] % k == 0]),
        "rms_norm_eps": rng.choice([1e-6, 1e-2]), "tie_word_embeddings": chance(rng),
        "rope_parameters": rotation(rng), act: rng.choice(GATES),
    }  # fmt: skip
    if own_head:  # a separate head width
        config["head_dim"] = rng.choice([4, 6, 10])
    if biased:
        config["attention_bias"] = chance(rng)
    return config


def llama(rng):
    return "LlamaForCausalLM", decoder(rng, biased=True) | {"mlp_bias": chance(rng)}


def llama_yarn(rng):
    """Heads of a real width with YaRN scaling of a real length."""
    return "LlamaForCausalLM", decoder(rng) | {
        "head_dim": 64, "max_position_embeddings": 16384,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 4096,
        },
    }  # fmt: skip


def mistral(rng):
    return "MistralForCausalLM", decoder(rng) | {"sliding_window": rng.choice([None, 3, 5])}


def qwen(kind):
    def of(rng):
        own = kind == "Qwen3"
        config = decoder(rng, own_head=own, biased=own)
        layers = config["num_hidden_layers"]
        config |= {
            "use_sliding_window": chance(rng, 0.7), "sliding_window": rng.choice([3, 4]),
            "max_window_layers": rng.choice([0, 1]),
        }  # fmt: skip
        if config["use_sliding_window"] and chance(rng):
            config["layer_types"] = layer_types(rng, layers)
        return f"{kind}ForCausalLM", config

    return of


def gemma(rng):
    return "GemmaForCausalLM", decoder(rng, biased=True)


def layer_types(rng, layers):
    kinds = ["sliding_attention", "full_attention"]
    sample = rng.choice([[0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]])
    return [kinds[item] for item in sample[:layers]]


def sandwiched(rng):
    """Fields of Gemma 2 and 3."""
    config = decoder(rng, act="hidden_activation", biased=True)
    return config | {
        "sliding_window": rng.choice([3, 4]),
        "layer_types": layer_types(rng, config["num_hidden_layers"]),
        "query_pre_attn_scalar": rng.choice([5, 16]),
        "final_logit_softcapping": rng.choice([None, 3.0]),
    }  # fmt: skip


def gemma2(rng):
    cap = {"attn_logit_softcapping": rng.choice([None, 1.5])}
    return "Gemma2ForCausalLM", sandwiched(rng) | cap


def gemma3(rng):
    rotations = two_rotations(rng, 1e6, 1e4)
    return "Gemma3ForCausalLM", sandwiched(rng) | {"rope_parameters": rotations}


def olmo2(rng):
    return "Olmo2ForCausalLM", decoder(rng, own_head=False, biased=True)


def phi3(rng):
    config = decoder(rng, own_head=False)
    item = config["hidden_size"] // config["num_attention_heads"]
    share = rng.choice([1.0, 0.4]) if item == 10 else 1.0
    config["rope_parameters"] = {
        "rope_type": "default", "rope_theta": rng.choice([500.0, 1e4]),
        "partial_rotary_factor": share,
    }  # fmt: skip
    if chance(rng, 0.6):  # all texts of the tests are long, or none
        pairs = int(item * share) // 2
        config["original_max_position_embeddings"] = rng.choice([3, 30])
        config["rope_parameters"] |= {
            "rope_type": "longrope", "short_factor": [1.0 + pair for pair in range(pairs)],
            "long_factor": [2.0 + 3 * pair for pair in range(pairs)],
            "original_max_position_embeddings": config["original_max_position_embeddings"],
        }  # fmt: skip
    return "Phi3ForCausalLM", config | {
        "sliding_window": rng.choice([None, 4]), "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    }  # fmt: skip


def gpt2(rng):
    size = sizes(rng, even=False)
    return "GPT2LMHeadModel", {
        **vocabulary(rng), "n_embd": size["d"], "n_head": size["heads"],
        "n_layer": rng.choice([2, 3]), "n_inner": rng.choice([None, size["inner"]]),
        "n_positions": rng.choice([32, 40]), "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "layer_norm_epsilon": rng.choice([1e-5, 1e-2]),
        "activation_function": rng.choice(PLAIN), "tie_word_embeddings": chance(rng, 0.7),
    }  # fmt: skip


def gpt_neox(rng):
    size = sizes(rng, even=True)
    share = {4: 0.5, 6: 1.0, 10: 0.8}[size["each"]]
    return "GPTNeoXForCausalLM", {
        **vocabulary(rng), **lengths(rng), "hidden_size": size["d"],
        "intermediate_size": size["inner"], "num_hidden_layers": rng.choice([2, 3]),
        "num_attention_heads": size["heads"], "use_parallel_residual": chance(rng),
        "rope_parameters": rotation(rng, partial_rotary_factor=share)
        if size["each"] * share >= 4
        else {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": share},
        "tie_word_embeddings": chance(rng, 0.3), "hidden_act": rng.choice(PLAIN),
        "attention_bias": chance(rng), "layer_norm_eps": rng.choice([1e-5, 1e-2]),
        "hidden_dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip


def bert_config(rng):
    size = sizes(rng, even=False)
    return {
        **vocabulary(rng), **lengths(rng), "hidden_size": size["d"],
        "intermediate_size": size["inner"], "num_hidden_layers": rng.choice([2, 3]),
        "num_attention_heads": size["heads"], "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "layer_norm_eps": rng.choice([1e-12, 1e-2]),
        "tie_word_embeddings": chance(rng, 0.7), "hidden_act": rng.choice(PLAIN),
    }  # fmt: skip


def bert(rng):
    return "BertForMaskedLM", bert_config(rng) | {"type_vocab_size": rng.choice([1, 2, 3])}


def roberta(rng):
    # Positions start after the padding id, which must be 1.
    more = {"type_vocab_size": rng.choice([1, 2]), "pad_token_id": 1}
    return "RobertaForMaskedLM", bert_config(rng) | more


def distilbert(rng):
    size = sizes(rng, even=False)
    return "DistilBertForMaskedLM", {
        **vocabulary(rng), **lengths(rng), "dim": size["d"], "hidden_dim": size["inner"],
        "n_layers": rng.choice([2, 3]), "n_heads": size["heads"], "dropout": 0.0,
        "attention_dropout": 0.0, "tie_word_embeddings": chance(rng, 0.7),
        "activation": rng.choice(["gelu", "relu"]),
    }  # fmt: skip


def modernbert(rng):
    size = sizes(rng, even=True)
    layers = rng.choice([3, 4])
    config = {
        **vocabulary(rng), **lengths(rng), "cls_token_id": rng.choice([2, 4]),
        "sep_token_id": rng.choice([3, 5]), "hidden_size": size["d"],
        "intermediate_size": size["inner"], "num_hidden_layers": layers,
        "num_attention_heads": size["heads"], "local_attention": rng.choice([4, 6]),
        "norm_eps": rng.choice([1e-5, 1e-2]), "tie_word_embeddings": chance(rng, 0.7),
        "rope_parameters": two_rotations(rng, 160000.0, 10000.0),
        "hidden_activation": rng.choice(GATES), "classifier_activation": rng.choice(PLAIN),
        "classifier_pooling": rng.choice(["cls", "mean"]),
    }  # fmt: skip
    names = ("norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias")
    config |= {name: chance(rng) for name in names}
    if chance(rng):
        config["layer_types"] = [layer_types(rng, 1)[0] for _ in range(layers)]
    return "ModernBertForMaskedLM", config


def t5_config(rng):
    size = sizes(rng, even=False)
    layers = rng.choice([2, 3])
    return {
        **vocabulary(rng), "d_model": size["d"], "d_kv": rng.choice([4, 5, 8]),
        "d_ff": size["inner"], "num_heads": size["heads"], "num_layers": layers,
        # transformers cannot generate if the decoder is deeper than the encoder.
        "num_decoder_layers": rng.choice([1, layers]), "dropout_rate": 0.0,
        "decoder_start_token_id": rng.choice([2, 6]),
        "layer_norm_epsilon": rng.choice([1e-6, 1e-2]),
        "relative_attention_num_buckets": rng.choice([8, 10]),
        "relative_attention_max_distance": rng.choice([9, 20]),
    }  # fmt: skip


def t5(rng):
    kind = rng.choice(["relu", "gelu", "gelu_new", "silu"])
    return "T5ForConditionalGeneration", t5_config(rng) | {"feed_forward_proj": kind}


def t5_v1_1(rng):
    kind = rng.choice(["gated-gelu", "gated-silu", "gated-relu"])
    return "T5ForConditionalGeneration", t5_config(rng) | {
        "feed_forward_proj": kind, "tie_word_embeddings": chance(rng, 0.3),
    }  # fmt: skip


def bart_config(rng):
    size = sizes(rng, even=False)
    d = size["d"] + size["d"] % 2  # sinusoidal positions need an even width
    heads = 2 if d % size["heads"] else size["heads"]
    return {
        **vocabulary(rng), **lengths(rng), "d_model": d, "encoder_layers": rng.choice([1, 2]),
        "decoder_layers": rng.choice([2, 3]), "encoder_attention_heads": heads,
        "decoder_attention_heads": heads, "encoder_ffn_dim": size["inner"],
        "decoder_ffn_dim": size["inner"], "dropout": 0.0,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0, "decoder_start_token_id": rng.choice([2, 6]),
        "forced_eos_token_id": None, "forced_bos_token_id": None, "scale_embedding": chance(rng),
        "activation_function": rng.choice(PLAIN), "tie_word_embeddings": chance(rng, 0.7),
    }  # fmt: skip


def bart(rng):
    return "BartForConditionalGeneration", bart_config(rng)


def marian(rng):
    config = bart_config(rng) | {"share_encoder_decoder_embeddings": chance(rng, 0.6)}
    if not config["share_encoder_decoder_embeddings"]:
        config["decoder_vocab_size"] = config["vocab_size"] - 7
    return "MarianMTModel", config


def m2m_100(rng):
    # Positions start after the padding id, which must be 1.
    return "M2M100ForConditionalGeneration", bart_config(rng) | {"pad_token_id": 1}


FAMILIES = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen("Qwen2"),
    "qwen3": qwen("Qwen3"),
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "olmo2": olmo2,
    "phi3": phi3,
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "t5": t5,
    "t5_v1_1": t5_v1_1,
    "bart": bart,
    "marian": marian,
    "m2m_100": m2m_100,
}

_STARTING = "of weights before training"
_TRAINING = (
    "of training: attention and layers have no dropout of their own here, it is written as 0"
)
_CLASSIFIER = "of training: a head for classes has no dropout of its own here"
_SPEED = "how theirs is computed, not what"
_DECODERS = {"initializer_range": _STARTING, "use_cache": _SPEED, "attention_dropout": _TRAINING}
_BOTH_WAYS = "refused: ours is causal here"
_ENCODERS = {
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), _TRAINING),
    "initializer_range": _STARTING, "use_cache": _SPEED, "classifier_dropout": _CLASSIFIER,
    **dict.fromkeys(("is_decoder", "add_cross_attention"), "refused: ours is an encoder here"),
}  # fmt: skip
_M2M = {
    "init_std": _STARTING, "use_cache": _SPEED,
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), _TRAINING),
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), _TRAINING),
}  # fmt: skip
_STACKS = {**_M2M, "is_decoder": "of a stack of theirs alone"}
_FORCED = {"forced_eos_token_id": "of decoding; in tests/parity/test_decoding_settings.py"}
_T5 = {
    "initializer_factor": _STARTING, "use_cache": _SPEED, "dropout_rate": _TRAINING,
    "classifier_dropout": _CLASSIFIER, "is_decoder": "of a stack of theirs alone",
}  # fmt: skip
# family -> field of its config class -> reason for not drawing it, or only one value
NOT_DRAWN = {
    "gpt2": {
        "initializer_range": _STARTING, "use_cache": _SPEED,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), _TRAINING),
        **dict.fromkeys(
            ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
             "summary_first_dropout"), "of GPT2DoubleHeadsModel, which is refused"),
        **dict.fromkeys(
            ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"),
            "refused: no published file has another value"),
        "reorder_and_upcast_attn": _SPEED,
    },
    "gpt_neox": {
        **_DECODERS, "hidden_dropout": _TRAINING, "classifier_dropout": _CLASSIFIER,
        "is_decoder": "nothing reads it",
    },
    "llama": {**_DECODERS, "pretraining_tp": "nothing reads it"},
    "mistral": _DECODERS,
    "qwen2": _DECODERS,
    "qwen3": _DECODERS,
    "gemma": {**_DECODERS, "use_bidirectional_attention": _BOTH_WAYS},
    "gemma2": {**_DECODERS, "use_bidirectional_attention": _BOTH_WAYS},
    "gemma3": {
        **_DECODERS, "use_bidirectional_attention": _BOTH_WAYS,
        "attn_logit_softcapping": "refused: nothing of theirs reads it",
    },
    "olmo2": _DECODERS,
    "phi3": {**_DECODERS, **dict.fromkeys(("resid_pdrop", "embd_pdrop"), _TRAINING)},
    "bert": _ENCODERS,
    "roberta": {**_ENCODERS, "pad_token_id": "refused: positions are counted from it on"},
    "distilbert": {
        "initializer_range": _STARTING, "sinusoidal_pos_embds": _STARTING,
        **dict.fromkeys(("dropout", "attention_dropout", "qa_dropout"), _TRAINING),
        "seq_classif_dropout": _CLASSIFIER,
    },
    "modernbert": {
        **dict.fromkeys(("initializer_range", "initializer_cutoff_factor"), _STARTING),
        **dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), _TRAINING),
        "classifier_dropout": _CLASSIFIER, "deterministic_flash_attn": _SPEED,
        **dict.fromkeys(("sparse_prediction", "sparse_pred_ignore_index"), _SPEED),
    },
    "t5": _T5,
    "t5_v1_1": _T5,
    "bart": {**_STACKS, **_FORCED, "classifier_dropout": _CLASSIFIER},
    "marian": {**_STACKS, **_FORCED},
    "m2m_100": {**_M2M, "pad_token_id": "refused: positions are counted from it on"},
}  # fmt: skip
