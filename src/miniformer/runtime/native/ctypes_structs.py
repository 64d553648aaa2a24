"""Structs and functions of kernels.cpp, which documents the fields."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import ClassVar

Fields = list[tuple[str, type]]


def _fields(kind: type, names: str) -> Fields:
    return [(name, kind) for name in names.split()]


class Linear(Structure):
    """Matrix [rows, columns] in panels, with optional scales of column groups and bias."""

    _fields_: ClassVar[Fields] = [
        *_fields(c_int32, "kind rows columns padding"),
        *_fields(c_void_p, "weight scales bias"),
    ]


class Norm(Structure):
    """Normalization layer, or none."""

    _fields_: ClassVar[Fields] = [
        *_fields(c_int32, "kind width"),
        *_fields(c_float, "eps padding"),
        *_fields(c_void_p, "weight bias"),
    ]


class Attention(Structure):
    """Attention; `qkv` of cross-attention contains only the queries."""

    _fields_: ClassVar[Fields] = [
        *_fields(Linear, "qkv out"),
        *_fields(Norm, "q_norm k_norm"),
        *_fields(c_int32, "norm_per_head window rotation has_sinks"),
        *_fields(c_float, "scale softcap"),
        *_fields(c_void_p, "sinks"),
    ]


class Layer(Structure):
    """Transformer layer."""

    _fields_: ClassVar[Fields] = [
        *_fields(Norm, "attention_in attention_out cross_in cross_out ffn_in ffn_out"),
        *_fields(Attention, "attention cross"),
        *_fields(Linear, "up down"),
    ]


class Model(Structure):
    """Decoder with head."""

    _fields_: ClassVar[Fields] = [
        *_fields(c_int32, "width heads kv_heads head_dim inner layers"),
        *_fields(c_int32, "gated activation post parallel has_cross rotary_dim vocabulary padding"),
        *_fields(c_float, "embedding_scale logit_scale logit_softcap padding2"),
        *_fields(c_void_p, "embedding"),
        *_fields(Norm, "embedding_norm final_norm"),
        *_fields(Linear, "head"),
        *_fields(c_void_p, "layer"),
    ]


class Step(Structure):
    """Inputs, outputs and buffers of a step."""

    _fields_: ClassVar[Fields] = [
        *_fields(c_int32, "count columns capacity source_columns"),
        *_fields(c_int32, "tables_per_row bias_per_row table_length rows_per_source"),
        *_fields(c_int32, "num_outputs first_layer stop_layer padding"),
        *_fields(c_void_p, "tokens positions rows token_columns output_tokens key_positions"),
        *_fields(c_void_p, "vectors cosines sines bias key_rows keys values"),
        *_fields(
            c_void_p, "source_keys source_values source_mask source_lengths hidden logits work"
        ),
    ]


def declare_signatures(library: ctypes.CDLL) -> None:
    """Declares the function signatures and checks the struct sizes."""
    library.engine_new.restype = c_void_p
    library.engine_new.argtypes = [ctypes.c_int]
    library.engine_free.argtypes = [c_void_p]
    library.engine_step.argtypes = [c_void_p, c_void_p, c_void_p]
    library.engine_top_logprobs.argtypes = [
        c_void_p, c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, c_void_p, c_void_p,
    ]  # fmt: skip
    library.engine_quantize.argtypes = [c_void_p, c_int64, c_void_p, c_void_p]
    library.engine_multiply_rows.argtypes = [
        c_void_p, c_void_p, ctypes.c_int, c_void_p, ctypes.c_int, c_void_p,
    ]  # fmt: skip
    library.engine_has_instructions.argtypes = [ctypes.c_int]
    sizes = (c_int64 * 6)()
    library.engine_sizes(sizes)
    expected = [ctypes.sizeof(struct) for struct in (Linear, Norm, Attention, Layer, Model, Step)]
    assert list(sizes) == expected, (
        f"kernels.cpp has structs of {list(sizes)} bytes, not {expected}"
    )
