"""Tensor names and layouts of llama.cpp's architectures.

The suffix, `.weight` or `.bias`, is the same on both sides; `{}` is the index of the layer.

Letters: H heads, E head width, D input width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from miniformer.config import TransformerConfig
from miniformer.interop.hf.weights import STACKED, Layout, NameTable, Shapes

_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_GATE_UP = ("feed_forward.gate_proj", "feed_forward.up_proj")
_LETTERS: NameTable = {
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
}
_FEED_FORWARD: NameTable = {
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
}
_PRE_NORMS: NameTable = {"attention_norm": "attn_norm", "feed_forward_norm": "ffn_norm"}
_OUTPUT_NORMS: NameTable = {
    "attention_out_norm": "post_attention_norm",
    "feed_forward_out_norm": "post_ffw_norm",
}
_QK_NORMS: NameTable = {"attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm"}
STEM: NameTable = {
    "embedding": "token_embd",
    "position": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
}
ENCODER_STEM: NameTable = {
    "embedding": "token_embd",
    "position": "position_embd",
    "type_embedding": "token_types",
    "embedding_norm": "token_embd_norm",
    "final_norm": "output_norm",
}
GATED_LAYER: NameTable = {
    **_LETTERS,
    **_FEED_FORWARD,
    **_PRE_NORMS,
    **_OUTPUT_NORMS,
    **_QK_NORMS,
}
STACKED_LAYER: NameTable = {
    _QKV: ("attn_qkv", STACKED),
    "attention.o_proj": "attn_output",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
    **_PRE_NORMS,
}
STACKED_GATED_LAYER: NameTable = {
    _QKV: ("attn_qkv", STACKED),
    "attention.o_proj": "attn_output",
    _GATE_UP: ("ffn_up", STACKED),
    "feed_forward.down_proj": "ffn_down",
    **_PRE_NORMS,
}
POST_NORM_LAYER: NameTable = {
    **_LETTERS,
    **_FEED_FORWARD,
    "attention_norm": "attn_output_norm",
    "feed_forward_norm": "layer_output_norm",
}


def _t5_stack(stack: str, prefix: str) -> NameTable:
    own = {f"attention.{name}_proj": f"attn_{name}" for name in "qkvo"}
    cross = {f"cross_attention.{name}_proj": f"cross_attn_{name}" for name in "qkvo"}
    cross["cross_attention_norm"] = "cross_attn_norm"
    cross = cross if stack == "decoder" else {}
    names: dict[Any, Any] = {**own, **_FEED_FORWARD, **_PRE_NORMS, **cross}
    return {
        f"{stack}.position": f"{prefix}.blk.0.attn_rel_b",
        f"{stack}.final_norm": f"{prefix}.output_norm",
        **{f"{stack}.layers.{{}}.{name}": f"{prefix}.blk.{{}}.{to}" for name, to in names.items()},
    }


T5_NAMES: NameTable = {
    "embedding": "token_embd",
    "head": "output",
    **_t5_stack("encoder", "enc"),
    **_t5_stack("decoder", "dec"),
}


def adjacent_pairs(head_width: int) -> Layout:
    """Rows of each head such that the two elements of a rotated pair are adjacent.

    Here, element i of a head rotates with element i + E/2; in llama.cpp's `llama`, with its
    neighbor.
    """

    def join(tensors: list[Tensor]) -> Tensor:
        (rows,) = tensors
        halves = rows.reshape(-1, 2, head_width // 2, *rows.shape[1:])  # [H, 2, E/2, ...]
        return halves.transpose(1, 2).reshape(rows.shape)

    def split(tensor: Tensor, shapes: Shapes) -> list[Tensor]:
        pairs = tensor.reshape(-1, head_width // 2, 2, *tensor.shape[1:])  # [H, E/2, 2, ...]
        return [pairs.transpose(1, 2).reshape(tensor.shape)]

    return Layout(join, split)  # type: ignore[arg-type]


# Weights of norms that are added to one here, and are factors in llama.cpp.
PLUS_ONE = Layout(
    lambda tensors: tensors[0].float() + 1.0, lambda tensor, _: [tensor.float() - 1.0]
)


def rotary_factors(config: TransformerConfig) -> dict[str, Tensor]:
    """Divisors of the rotary frequencies, of scalings that llama.cpp reads as tensors."""
    scaling = config.rotary_scaling
    if scaling is None or scaling["type"] not in ("llama3", "longrope"):
        return {}
    if scaling["type"] == "longrope":
        return {
            f"rope_factors_{name}.weight": torch.tensor(scaling[f"{name}_factors"])
            for name in ("long", "short")
        }
    from miniformer.model.rotary_scaling import scaled_inv_freq

    options: dict[str, Any] = {
        "base": config.rotary_base,
        "dim": config.rotary_dim,
        "seq_lens": torch.ones(1, 1),
    }
    plain, _ = scaled_inv_freq(None, **options)
    scaled, _ = scaled_inv_freq(scaling, **options)
    return {"rope_freqs.weight": (plain / scaled).flatten()}


def is_vector(name: str) -> bool:
    """True for a tensor of a file that stays float32: norms, biases, factors, positions.

    llama.cpp adds and multiplies these without conversion.
    """
    return bool(re.search(r"norm|\.bias$|rope_f|position_embd|token_types|attn_rel_b", name))
