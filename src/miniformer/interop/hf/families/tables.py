"""Tables and helpers that families share."""

from __future__ import annotations

from typing import Any

from miniformer.interop.hf.configs import Config

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


def token_ids(
    *, bos: int | None = None, eos: int | None = None, pad: int | None = None, **more: int | None
) -> Config:
    """Keys of a family's special token ids, with their defaults."""
    ids = {"bos": bos, "eos": eos, "pad": pad, **more}
    return {f"{name}_token_id": value for name, value in ids.items()}


def seq2seq_token_ids(**ids: int | None) -> Config:
    """Special token ids of a family with an encoder and a decoder."""
    return token_ids(**{"decoder_start": None, "forced_bos": None, "forced_eos": None, **ids})


# Classifiers of decoders: a linear head without bias on the last token.
LAST_TOKEN_CLASSIFIER: Config = {"output_dim": None, "output_bias": False, "pooling": "last"}


def prefix_names(names: dict[Any, Any], prefix: str, hf_prefix: str) -> dict[Any, Any]:
    """Adds prefixes to both sides of a table of names."""
    result: dict[Any, Any] = {}
    for left, right in names.items():
        key = prefix + left if isinstance(left, str) else tuple(prefix + name for name in left)
        result[key] = (
            hf_prefix + right if isinstance(right, str) else (hf_prefix + right[0], right[1])
        )
    return result


def no_head_dim(config: Config, fields: Config) -> None:
    """Derives the head width from the model width."""
    fields["head_dim"] = None
