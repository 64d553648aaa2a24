"""Tiny models of Hugging Face's, drawn at random: every family, with what its configs vary."""

import random

V = 300
IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
PAD, LENGTH = 1, 12


def draw(name, number):
    """(class name, config) of a family: shapes, ties, windows and rotations by chance."""
    dice = random.Random(f"{name} {number}")
    return FAMILIES[name](dice)


def sizes(dice, *, even):
    """Width, heads and inner width; a head's width is even where it is rotated."""
    heads = dice.choice([2, 3, 4])
    each = dice.choice([4, 6, 10] if even else [3, 5, 7, 8])
    return {"heads": heads, "each": each, "d": heads * each, "inner": dice.choice([17, 20, 33])}


def rotation(dice, base=10000.0, **more):
    """One rotation, maybe scaled."""
    kind = dice.choice(["default", "linear", "dynamic", "yarn", "llama3"])
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
    return {"rope_type": kind, "rope_theta": dice.choice([base, 500.0]), **extra, **more}


def decoder(dice, *, own_head=True):
    size = sizes(dice, even=True)
    config = {
        **IDS, "vocab_size": V, "hidden_size": size["d"], "intermediate_size": size["inner"],
        "num_hidden_layers": 3, "num_attention_heads": size["heads"],
        "num_key_value_heads": dice.choice([k for k in (1, 2, 3, 4) if size["heads"] % k == 0]),
        "max_position_embeddings": 32, "rms_norm_eps": dice.choice([1e-6, 1e-2]),
        "tie_word_embeddings": dice.random() < 0.5, "rope_parameters": rotation(dice),
    }  # fmt: skip
    if own_head:  # a head's width of its own
        config["head_dim"] = dice.choice([4, 6, 10])
    return config


def llama(dice):
    biased = dice.random() < 0.3
    return "LlamaForCausalLM", decoder(dice) | {"attention_bias": biased, "mlp_bias": biased}


def mistral(dice):
    return "MistralForCausalLM", decoder(dice) | {"sliding_window": dice.choice([None, 3, 5])}


def qwen(kind):
    def of(dice):
        more = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
        plain = dice.random() < 0.5
        return f"{kind}ForCausalLM", decoder(dice, own_head=kind == "Qwen3") | (
            {} if plain else more
        )

    return of


def gemma(dice):
    return "GemmaForCausalLM", decoder(dice) | {"tie_word_embeddings": True}


def layer_types(dice):
    kinds = ["sliding_attention", "full_attention"]
    return dice.choice([[kinds[0], kinds[1], kinds[0]], [kinds[0], kinds[0], kinds[1]]])


def gemma2(dice):
    return "Gemma2ForCausalLM", decoder(dice) | {
        "tie_word_embeddings": True, "sliding_window": 4, "layer_types": layer_types(dice),
        "query_pre_attn_scalar": dice.choice([5, 16]),
        "attn_logit_softcapping": dice.choice([None, 1.5]),
        "final_logit_softcapping": dice.choice([None, 3.0]),
    }  # fmt: skip


def gemma3(dice):
    plain = {"rope_type": "default", "rope_theta": 100.0}
    far = dice.choice([{"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}])
    return "Gemma3ForCausalLM", decoder(dice) | {
        "tie_word_embeddings": True, "sliding_window": 4, "layer_types": layer_types(dice),
        "query_pre_attn_scalar": dice.choice([5, 16]),
        "rope_parameters": {"full_attention": {**far, "rope_theta": 1e6},
                            "sliding_attention": plain},
    }  # fmt: skip


def olmo2(dice):
    return "Olmo2ForCausalLM", decoder(dice, own_head=False)


def phi3(dice):
    config = decoder(dice, own_head=False)
    each = config["hidden_size"] // config["num_attention_heads"]
    share = dice.choice([1.0, 0.4]) if each == 10 else 1.0
    config["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": share,
    }  # fmt: skip
    if dice.random() < 0.6:  # every text of the tests is long, or none
        pairs = int(each * share) // 2
        config["original_max_position_embeddings"] = dice.choice([3, 30])
        config["rope_parameters"] |= {
            "rope_type": "longrope", "short_factor": [1.0 + pair for pair in range(pairs)],
            "long_factor": [2.0 + 3 * pair for pair in range(pairs)],
            "original_max_position_embeddings": config["original_max_position_embeddings"],
        }  # fmt: skip
    return "Phi3ForCausalLM", config | {
        "sliding_window": dice.choice([None, 4]), "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    }  # fmt: skip


def gpt2(dice):
    size = sizes(dice, even=False)
    return "GPT2LMHeadModel", {
        **IDS, "vocab_size": V, "n_embd": size["d"], "n_head": size["heads"], "n_layer": 2,
        "n_inner": dice.choice([None, size["inner"]]), "n_positions": 32, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "layer_norm_epsilon": dice.choice([1e-5, 1e-2]),
        "activation_function": dice.choice(["gelu_new", "relu", "gelu"]),
        "tie_word_embeddings": dice.random() < 0.7,
    }  # fmt: skip


def gpt_neox(dice):
    size = sizes(dice, even=True)
    share = {4: 0.5, 6: 1.0, 10: 0.8}[size["each"]]
    return "GPTNeoXForCausalLM", {
        **IDS, "vocab_size": V, "hidden_size": size["d"], "intermediate_size": size["inner"],
        "num_hidden_layers": 2, "num_attention_heads": size["heads"],
        "max_position_embeddings": 32, "use_parallel_residual": dice.random() < 0.5,
        "rope_parameters": rotation(dice, partial_rotary_factor=share)
        if size["each"] * share >= 4
        else {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": share},
        "tie_word_embeddings": dice.random() < 0.3,
    }  # fmt: skip


def bert_config(dice):
    size = sizes(dice, even=False)
    return {
        **IDS, "vocab_size": V, "hidden_size": size["d"], "intermediate_size": size["inner"],
        "num_hidden_layers": 2, "num_attention_heads": size["heads"],
        "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "layer_norm_eps": dice.choice([1e-12, 1e-2]),
        "tie_word_embeddings": dice.random() < 0.7,
    }  # fmt: skip


def bert(dice):
    return "BertForMaskedLM", bert_config(dice) | {"type_vocab_size": dice.choice([1, 2, 3])}


def roberta(dice):
    return "RobertaForMaskedLM", bert_config(dice) | {"type_vocab_size": 1}


def distilbert(dice):
    size = sizes(dice, even=False)
    return "DistilBertForMaskedLM", {
        **IDS, "vocab_size": V, "dim": size["d"], "hidden_dim": size["inner"], "n_layers": 2,
        "n_heads": size["heads"], "max_position_embeddings": 32, "dropout": 0.0,
        "attention_dropout": 0.0, "tie_word_embeddings": dice.random() < 0.7,
    }  # fmt: skip


def modernbert(dice):
    size = sizes(dice, even=True)
    return "ModernBertForMaskedLM", {
        **IDS, "cls_token_id": 2, "sep_token_id": 3, "vocab_size": V, "hidden_size": size["d"],
        "intermediate_size": size["inner"], "num_hidden_layers": 4,
        "num_attention_heads": size["heads"], "max_position_embeddings": 32,
        "local_attention": dice.choice([4, 6]), "norm_eps": dice.choice([1e-5, 1e-2]),
        "tie_word_embeddings": dice.random() < 0.7,
    }  # fmt: skip


def t5_config(dice):
    size = sizes(dice, even=False)
    return {
        **IDS, "vocab_size": V, "d_model": size["d"], "d_kv": dice.choice([4, 5, 8]),
        "d_ff": size["inner"], "num_heads": size["heads"], "num_layers": 2,
        # Theirs cannot generate where the decoder is deeper than the encoder.
        "num_decoder_layers": dice.choice([1, 2]), "dropout_rate": 0.0,
        "decoder_start_token_id": 2, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": dice.choice([9, 20]),
    }  # fmt: skip


def t5(dice):
    return "T5ForConditionalGeneration", t5_config(dice)


def t5_v1_1(dice):
    kind = dice.choice(["gated-gelu", "gated-silu"])
    tied = dice.random() < 0.3
    return "T5ForConditionalGeneration", t5_config(dice) | {
        "feed_forward_proj": kind, "tie_word_embeddings": tied,
    }  # fmt: skip


def bart_config(dice):
    size = sizes(dice, even=False)
    d = size["d"] + size["d"] % 2  # sines want an even width
    heads = 2 if d % size["heads"] else size["heads"]
    return {
        **IDS, "vocab_size": V, "d_model": d, "encoder_layers": 2,
        "decoder_layers": dice.choice([2, 3]), "encoder_attention_heads": heads,
        "decoder_attention_heads": heads, "encoder_ffn_dim": size["inner"],
        "decoder_ffn_dim": size["inner"], "max_position_embeddings": 32, "dropout": 0.0,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0, "decoder_start_token_id": 2, "forced_eos_token_id": None,
        "forced_bos_token_id": None, "scale_embedding": dice.random() < 0.5,
        "activation_function": dice.choice(["gelu", "relu", "swish"]),
    }  # fmt: skip


def bart(dice):
    return "BartForConditionalGeneration", bart_config(dice)


def marian(dice):
    shared = dice.random() < 0.6
    two = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": V - 7}
    return "MarianMTModel", bart_config(dice) | ({} if shared else two)


def m2m_100(dice):
    return "M2M100ForConditionalGeneration", bart_config(dice)


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
