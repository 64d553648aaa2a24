"""What the families' tables have in common."""

from __future__ import annotations

from typing import Any

from miniformer.interop.hf.configs import Config

# their activation -> ours, plain and with a gate
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
    """A family's keys of special tokens, with the ids where a file leaves them out."""
    ids = {"bos": bos, "eos": eos, "pad": pad, **more}
    return {f"{name}_token_id": value for name, value in ids.items()}


def seq2seq_token_ids(**ids: int | None) -> Config:
    """The same of a family with an encoder and a decoder."""
    return token_ids(**{"decoder_start": None, "forced_bos": None, "forced_eos": None, **ids})


# How decoders make classes: a map of the last token, without a bias.
LAST_TOKEN_CLASSIFIER: Config = {"output_dim": None, "output_bias": False, "pooling": "last"}


def prefix_names(names: dict[Any, Any], prefix: str, hf_prefix: str) -> dict[Any, Any]:
    """A table of names within a layer, with what is before them on both sides."""
    made: dict[Any, Any] = {}
    for left, right in names.items():
        key = prefix + left if isinstance(left, str) else tuple(prefix + each for each in left)
        made[key] = (
            hf_prefix + right if isinstance(right, str) else (hf_prefix + right[0], right[1])
        )
    return made


def no_head_dim(config: Config, fields: Config) -> None:
    """The width of a head follows from the model's."""
    fields["head_dim"] = None
