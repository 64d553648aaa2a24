"""Config presets of published architectures. Nothing here imports torch.

| architecture | paper or model card |
|---|---|
| gpt2 | Radford et al. 2019, "Language models are unsupervised multitask learners" |
| gpt_neox | Black et al. 2022 (arXiv 2204.06745); Pythia, Biderman et al. 2023 (2304.01373) |
| llama | Touvron et al. 2023 (2302.13971); as in Llama 3, Grattafiori et al. 2024 (2407.21783) |
| mistral | Jiang et al. 2023 (2310.06825), v0.1 |
| qwen2 | Yang et al. 2024 (2407.10671) |
| qwen3 | Yang et al. 2025 (2505.09388) |
| gemma | Gemma Team 2024 (2403.08295) |
| gemma2 | Gemma Team 2024 (2408.00118) |
| gemma3 | Gemma Team 2025 (2503.19786), text |
| phi3 | Abdin et al. 2024 (2404.14219), mini 4k |
| olmo2 | OLMo Team 2024 (2501.00656) |
| bert | Devlin et al. 2018 (1810.04805) |
| roberta | Liu et al. 2019 (1907.11692) |
| distilbert | Sanh et al. 2019 (1910.01108) |
| modernbert | Warner et al. 2024 (2412.13663) |
| t5 | Raffel et al. 2019 (1910.10683), v1.0 |
| t5_v1_1 | Shazeer 2020 (2002.05202) and the card of google/t5-v1_1-base |
| bart | Lewis et al. 2019 (1910.13461) |
| marian | Junczys-Dowmunt et al. 2018 (1804.00344); cards of Helsinki-NLP/opus-mt |
| m2m_100 | Fan et al. 2020 (2010.11125); NLLB Team 2022 (2207.04672) |

Some fields differ between the checkpoints of an architecture: sizes, `tie_embeddings` (small Llama
3.2, Qwen 2 and Qwen 3 are tied, large are not), `rotary_scaling` (Llama 3.1 and later: llama3).
The presets have the values of the paper's main checkpoint; arguments of `architecture_config`
override them.

`miniformer.interop.hf` maps checkpoint files to this package's. RoBERTa's positions count tokens
other than the padding token, so padding and mask must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from miniformer import registry

_LLAMA: dict[str, Any] = {
    "causal": True,
    "position": "rotary",
    "norm_placement": "pre",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
_GEMMA: dict[str, Any] = {
    **_LLAMA,
    "norm": "zero_centered_rmsnorm",
    "activation": "geglu_tanh",
    "norm_eps": 1e-6,
    "rotary_base": 10000.0,
    "tie_embeddings": True,
}
_BERT: dict[str, Any] = {
    "causal": False,
    "position": "learned",
    "norm_placement": "post",
    "norm": "layernorm",
    "activation": "gelu",
    "bias": True,
    "embedding_norm": True,
    "head": "masked_lm",
    "head_bias": True,
    "tie_embeddings": True,
}
_T5: dict[str, Any] = {
    "position": "t5_relative",
    "relative_buckets": 32,
    "relative_max_distance": 128,
    "norm_placement": "pre",
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "bias": False,
    "attention_scale": 1.0,
}
_BART: dict[str, Any] = {
    "norm_placement": "post",
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "bias": True,
    "tie_embeddings": True,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "causal": True,
        "position": "learned",
        "norm_placement": "pre",
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "bias": True,
        "tie_embeddings": True,
    },
    "gpt_neox": {
        "causal": True,
        "position": "rotary",
        "rotary_pct": 0.25,
        "rotary_base": 10000.0,
        "norm_placement": "pre",
        "parallel_residual": True,
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "activation": "gelu",
        "bias": True,
        "tie_embeddings": False,
    },
    "llama": {**_LLAMA, "norm_eps": 1e-5, "rotary_base": 500000.0, "rotary_scaling": None},
    "mistral": {**_LLAMA, "norm_eps": 1e-5, "rotary_base": 10000.0, "sliding_window": 4096},
    "qwen2": {**_LLAMA, "norm_eps": 1e-6, "rotary_base": 1000000.0, "qkv_bias": True},
    "qwen3": {**_LLAMA, "norm_eps": 1e-6, "rotary_base": 1000000.0, "qk_norm": "head"},
    "gemma": _GEMMA,
    "gemma2": {
        **_GEMMA,
        "norm_placement": "both",
        "sliding_window": 4096,
        "window_pattern": "LG",
        "logit_softcap": 50.0,
        "final_softcap": 30.0,
    },
    "gemma3": {
        **_GEMMA,
        "norm_placement": "both",
        "sliding_window": 512,
        "window_pattern": "LLLLLG",
        "qk_norm": "head",
        "rotary_base": 1000000.0,
        "rotary_base_local": 10000.0,
    },
    "phi3": {**_LLAMA, "norm_eps": 1e-5, "rotary_base": 10000.0, "sliding_window": 2047},
    "olmo2": {
        **_LLAMA,
        "norm_placement": "output",
        "norm_eps": 1e-6,
        "rotary_base": 500000.0,
        "qk_norm": "projection",
    },
    "bert": {**_BERT, "norm_eps": 1e-12, "token_types": 2},
    "roberta": {**_BERT, "norm_eps": 1e-5, "token_types": 1},
    "distilbert": {**_BERT, "norm_eps": 1e-12},
    "modernbert": {
        **_BERT,
        "position": "rotary",
        "rotary_base": 160000.0,
        "rotary_base_local": 10000.0,
        "sliding_window": 128,
        "window_pattern": "GLL",
        "norm_placement": "pre",
        "first_attention_norm": False,
        "norm_eps": 1e-5,
        "activation": "geglu",
        "bias": False,
    },
    "t5": {**_T5, "activation": "relu", "tie_embeddings": True},
    "t5_v1_1": {**_T5, "activation": "geglu_tanh", "tie_embeddings": False},
    "bart": {**_BART, "position": "learned", "activation": "gelu", "embedding_norm": True},
    "marian": {**_BART, "position": "sinusoidal", "activation": "silu", "head_bias": True},
    "m2m_100": {
        **_BART,
        "norm_placement": "pre",
        "position": "sinusoidal_fairseq",
        "activation": "relu",
    },
}

# Built as a Seq2SeqTransformer; all others as a Transformer.
SEQ2SEQ_ARCHITECTURES = frozenset({"t5", "t5_v1_1", "bart", "marian", "m2m_100"})

# architecture -> field -> function of d_model
_WIDTH_DEPENDENT_FIELDS: dict[str, dict[str, Callable[[int], float]]] = {
    "gemma": {"embedding_scale": lambda width: width**0.5},
    "gemma2": {"embedding_scale": lambda width: width**0.5},
    "gemma3": {"embedding_scale": lambda width: width**0.5},
    "t5": {"logit_scale": lambda width: width**-0.5},
    "marian": {"embedding_scale": lambda width: width**0.5},
    "m2m_100": {"embedding_scale": lambda width: width**0.5},
}


def architecture_config(name: str, **sizes: Any) -> dict[str, Any]:
    """TransformerConfig fields of an architecture, those derived from the sizes, and the sizes.

    Args:
        name: key of ARCHITECTURES.
        sizes: fields of a TransformerConfig such as `d_model`; they override the preset. Gemma 2
            and 3 also take `query_pre_attn_scalar`, which sets `attention_scale`; its default is
            `head_dim`, as in the 2B and 9B models.

    Raises:
        ValueError: the name is unknown, or `d_model` is missing and another field depends on it.
    """
    if name not in ARCHITECTURES:
        raise ValueError(registry.unknown_name_message("architecture", name, list(ARCHITECTURES)))
    derived: dict[str, Any] = {}
    tied = {**ARCHITECTURES[name], **sizes}.get("tie_embeddings")
    for field, value in _WIDTH_DEPENDENT_FIELDS.get(name, {}).items():
        if field == "logit_scale" and not tied:
            continue  # compensates for the embedding's scale (code of Raffel et al.)
        if field not in sizes and "d_model" not in sizes:
            raise ValueError(f"architecture {name!r} needs d_model: its {field} depends on it")
        if field not in sizes:
            derived[field] = value(sizes["d_model"])
    if name in ("gemma2", "gemma3") and "query_pre_attn_scalar" in sizes:
        derived["attention_scale"] = sizes.pop("query_pre_attn_scalar") ** -0.5
    return {**ARCHITECTURES[name], **derived, **sizes}
