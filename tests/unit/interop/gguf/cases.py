"""Tiny models of each architecture of llama.cpp."""

import torch

from miniformer import Seq2SeqTransformer, Transformer, TransformerConfig
from miniformer.config.architectures import architecture_config
from miniformer.interop.gguf.write import write_gguf
from miniformer.interop.hf.export import export_source

SIZES = {
    "vocab_size": 96, "d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 64,
    "dropout": 0.0, "d_ff": 96,
}  # fmt: skip
LLAMA3 = {"type": "llama3", "factor": 8.0, "original_max_seq_len": 16}
YARN = {"type": "yarn", "factor": 4.0, "original_max_seq_len": 16}
OWN_YARN = {**YARN, "attention_factor": 1.3, "beta_fast": 16.0}
LINEAR = {"type": "linear", "factor": 8.0}
LONGROPE = {
    "type": "longrope", "factor": 4.0, "original_max_seq_len": 256,
    "short_factors": [1 + i / 8 for i in range(4)], "long_factors": [2.0 + i for i in range(4)],
}  # fmt: skip
# name -> preset, None for the trainer's default, and fields
DECODERS = {
    "default": (None, {"causal": True}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox_tied": (
        "gpt_neox", {"tie_embeddings": True, "parallel_residual": False, "attention_bias": False}
    ),
    "llama": ("llama", {"n_kv_heads": 2}),
    "llama_wide": ("llama", {"n_kv_heads": 2, "head_dim": 32, "tie_embeddings": True}),
    "llama_biased": ("llama", {"attention_bias": True, "feed_forward_bias": True}),
    "llama3": ("llama", {"n_kv_heads": 2, "rotary_scaling": LLAMA3}),
    "llama_linear": ("llama", {"rotary_scaling": LINEAR}),
    "mistral": ("mistral", {"n_kv_heads": 2}),
    "qwen2": ("qwen2", {"n_kv_heads": 2}),
    "qwen3": ("qwen3", {"n_kv_heads": 2, "head_dim": 32}),
    "olmo2": ("olmo2", {"n_kv_heads": 2}),
    "gemma": ("gemma", {"n_kv_heads": 1, "head_dim": 32}),
    "gemma2": ("gemma2", {"n_layers": 4, "n_kv_heads": 2, "head_dim": 32, "sliding_window": 8}),
    "gemma3": ("gemma3", {"n_layers": 7, "n_kv_heads": 2, "head_dim": 32, "sliding_window": 8}),
    "gemma3_linear": (
        "gemma3",
        {"n_layers": 7, "head_dim": 32, "sliding_window": 8, "rotary_scaling": LINEAR},
    ),
    "phi3_partial": ("phi3", {"rotary_pct": 0.5}),
}  # fmt: skip
# Scalings of which the reference in numpy has no formula.
SCALED = {
    "llama_yarn": ("llama", {"rotary_scaling": YARN}),
    "llama_own_yarn": ("llama", {"rotary_scaling": OWN_YARN}),
    "phi3_longrope": ("phi3", {"max_seq_len": 1024, "rotary_pct": 0.5, "rotary_scaling": LONGROPE}),
}
ENCODERS = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "distilbert": ("distilbert", {}),
    "modernbert": ("modernbert", {"sliding_window": 8}),
}
SEQ2SEQ = {
    "t5": ("t5", {"head_dim": 32}),
    "t5_v1_1": ("t5_v1_1", {"n_decoder_layers": 2}),
}
ALL = {**DECODERS, **SCALED, **ENCODERS, **SEQ2SEQ}


def build(name, **changes):
    """A model with random weights, biases and norms, whose logits differ by some units."""
    preset, fields = ALL[name]
    fields = {**SIZES, **fields, **changes}
    config = TransformerConfig(**(architecture_config(preset, **fields) if preset else fields))
    torch.manual_seed(0)
    model = (Seq2SeqTransformer if name in SEQ2SEQ else Transformer)(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embedding" not in key and name not in SEQ2SEQ:
                parameter.mul_(2.0)
    return model


def write(model, path, **options):
    """Writes a model as a GGUF file."""
    return write_gguf(export_source(model), path, **options)
