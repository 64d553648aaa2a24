"""Attention as ONNX nodes: `scaled_dot_product_attention` without copies of keys and values.

torch's own translation transposes, scales and (of grouped queries) repeats all keys of the past in
each step. Here the queries are scaled, a group of query heads is one matrix, and the transposed
keys are an operand of the product, where onnxruntime reads them in place (`FusedMatMul`).

Letters: B batch, T query length, S key length, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch


def translations() -> dict[Any, Any]:
    """The functions that replace translations of `torch.onnx`, by operation."""
    return {torch.ops.aten.scaled_dot_product_attention.default: attention}


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Nodes of an attention; see `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        query, key, value: [B, H, T, E], [B, K, S, E] and [B, K, S, E].
        attn_mask: bool or float, [B or 1, H or 1, T or 1, S]; None: all keys are visible.
        dropout_p: must be 0, as in a model in eval mode.
        is_causal: each query sees the keys of its own and earlier columns.
        scale: of the scores; None: 1 / sqrt(E).
        enable_gqa: true: K may be a divisor of H.
    """
    from onnxscript import opset20

    op: Any = opset20  # its types are those of values, not of nodes

    assert dropout_p == 0
    (heads, width), groups = (query.shape[1], query.shape[3]), key.shape[1]
    query = op.Mul(query, op.Constant(value_float=width**-0.5 if scale is None else scale))
    if heads != groups:
        query = op.Reshape(query, op.Constant(value_ints=[0, groups, -1, width]))
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    columns = op.Shape(key, start=2, end=3)
    if heads != groups:  # [B, K, H / K * T, S]
        size = op.Concat(op.Constant(value_ints=[0, heads, -1]), columns, axis=0)
        scores = op.Reshape(scores, size)
    if is_causal:
        size = op.Concat(op.Shape(scores, start=2, end=3), columns, axis=0)
        attn_mask = op.Trilu(op.Expand(op.Constant(value=_true()), size), upper=0)
    has_bools = attn_mask is not None and (is_causal or attn_mask.dtype.name == "BOOL")
    if has_bools:
        attn_mask = op.Where(
            attn_mask, op.Constant(value_float=0.0), op.Constant(value_float=float("-inf"))
        )
    weights = op.Softmax(scores if attn_mask is None else op.Add(scores, attn_mask), axis=-1)
    if attn_mask is not None:  # of a row without visible keys
        weights = op.Where(op.IsNaN(weights), op.Constant(value_float=0.0), weights)
    if heads == groups:
        return op.MatMul(weights, value)
    size = op.Concat(op.Constant(value_ints=[0, groups, -1]), columns, axis=0)
    out = op.MatMul(op.Reshape(weights, size), value)
    return op.Reshape(out, op.Constant(value_ints=[0, heads, -1, width]))


def _true() -> Any:
    import onnx

    return onnx.helper.make_tensor("true", onnx.TensorProto.BOOL, [1], [True])
