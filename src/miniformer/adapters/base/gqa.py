"""Fewer heads of keys and values: MHA to GQA or MQA (Ainslie et al. 2023).

    K heads in groups of m -> one head for each group
    mean    the mean of the projections of a group
    svd     the projection from which those of a group are predicted with the least squared error on
            samples; what predicts them becomes a part of the queries and of the output

Rotary keys are turned after their projection, so each pair of their dimensions is a complex number,
and the prediction of a head from it is a complex factor, which a turn does not change.

Letters: K heads before, G groups, m heads of a group, E head width, D model width, N samples.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig, UserError
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.transforms import merge_transforms

METHODS = ("mean", "svd")
Moments = dict[str, Tensor]


@contextlib.contextmanager
def input_moments(model: nn.Module) -> Iterator[Moments]:
    """Context that sums x x^T over the inputs x = (input, 1) of keys and values, [D + 1, D + 1]."""
    moments: Moments = {}

    def hook_of(path: str) -> Callable[[Any, Any], None]:
        def add(_: Any, arguments: Any) -> None:
            x = arguments[0].detach().flatten(0, -2).double()
            x = torch.cat((x, x.new_ones(len(x), 1)), 1)
            moments[path] = moments.get(path, 0) + x.T @ x

        return add

    handles = [
        module.k_proj.register_forward_pre_hook(hook_of(path))
        for path, module in model.named_modules()
        if isinstance(module, MultiHeadAttention)
    ]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def convert_heads(
    model: Any, n_kv_heads: int, method: str = "mean", moments: Moments | None = None
) -> Any:
    """A model with fewer heads of keys and values.

    Args:
        model: a Transformer or Seq2SeqTransformer; it is not changed.
        n_kv_heads: heads of keys and values; a divisor of those of the model.
        method: mean or svd.
        moments: of the inputs, see `input_moments`; None: all inputs are equally likely.

    Raises:
        UserError: the number is no divisor, the method is unknown, or svd cannot keep the model.
    """
    config: TransformerConfig = model.config
    heads = config.kv_heads
    if method not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if n_kv_heads < 1 or heads % n_kv_heads:
        divisors = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise UserError(
            f"n_kv_heads must divide the {heads} heads of keys and values: {', '.join(divisors)}, "
            f"not {n_kv_heads}"
        )
    if config.qk_norm is not None and (method == "svd" or config.qk_norm != "head"):
        raise UserError(
            f"qk_norm={config.qk_norm} is no linear map of the keys; only the method mean with "
            "qk_norm=head keeps its meaning"
        )
    plain = merge_transforms(copy.deepcopy(model))
    weights = dict(plain.state_dict())
    if n_kv_heads < heads:
        for path, module in plain.named_modules():
            if isinstance(module, MultiHeadAttention):
                moment = None if moments is None else moments.get(path)
                _convert(weights, path, module, config, n_kv_heads, method, moment)
    new_config = dataclasses.replace(config, n_kv_heads=n_kv_heads)
    with torch.device("meta"):
        converted = type(model)(new_config)
    converted.load_state_dict({name: x.clone() for name, x in weights.items()}, assign=True)
    return converted.train(model.training)


def _convert(
    weights: dict[str, Tensor],
    path: str,
    module: MultiHeadAttention,
    config: TransformerConfig,
    groups: int,
    method: str,
    moment: Tensor | None,
) -> None:
    """Replaces the weights of an attention."""
    width = module.head_dim

    def rows(name: str) -> Tensor:
        """Weight and bias of a projection by head, [heads, E, D + 1], float64."""
        weight, bias = weights[f"{path}.{name}.weight"], weights.get(f"{path}.{name}.bias")
        column = weight.new_zeros(len(weight)) if bias is None else bias
        matrix = torch.cat((weight, column[:, None]), 1)
        return matrix.double().view(-1, width, matrix.shape[1])

    def store(name: str, matrix: Tensor) -> None:
        matrix = matrix.flatten(0, 1).to(weights[f"{path}.{name}.weight"].dtype)
        weights[f"{path}.{name}.weight"] = matrix[:, :-1].contiguous()
        if f"{path}.{name}.bias" in weights:
            weights[f"{path}.{name}.bias"] = matrix[:, -1].contiguous()

    keys, values = rows("k_proj"), rows("v_proj")  # [K, E, D + 1]
    keys, values = (x.view(groups, -1, *x.shape[1:]) for x in (keys, values))
    if method == "mean":
        store("k_proj", keys.mean(1))
        store("v_proj", values.mean(1))
        return
    size = keys.shape[-1]
    moment = torch.eye(size, dtype=torch.float64) if moment is None else moment.to(keys)
    rotary = config.rotary_dim if config.position == "rotary" and not module.cross else 0
    # [G, m, H / K, E, D + 1]
    queries = rows("q_proj").view(groups, keys.shape[1], -1, width, size)
    shared_keys, shared_values = [], []
    output = weights[f"{path}.o_proj.weight"]
    outputs = output.double().view(len(output), groups, keys.shape[1], -1, width)
    new_outputs = outputs.clone()
    for group in range(groups):
        shared, queries[group] = _shared_keys(keys[group], queries[group], moment, rotary)
        shared_keys.append(shared)
        basis = _basis(values[group].flatten(0, 1), moment, width)  # [m * E, E]
        shared_values.append(basis.T @ values[group].flatten(0, 1))
        by_head = basis.view(-1, width, width)  # [m, E, E]
        new_outputs[:, group] = torch.einsum("omhe,mef->omhf", outputs[:, group], by_head)
    store("q_proj", queries.flatten(0, 2))
    store("k_proj", torch.stack(shared_keys))
    store("v_proj", torch.stack(shared_values))
    weights[f"{path}.o_proj.weight"] = new_outputs.flatten(1).to(output.dtype)


def _basis(matrix: Tensor, moment: Tensor, rank: int) -> Tensor:
    """Directions of outputs with the largest squares on the samples: [rows, D] -> [rows, rank]."""
    vectors: Tensor = torch.linalg.eigh(matrix @ moment.to(matrix.dtype) @ matrix.mH)[1]
    return vectors[:, -rank:]


def _shared_keys(
    keys: Tensor, queries: Tensor, moment: Tensor, rotary: int
) -> tuple[Tensor, Tensor]:
    """Keys of a group, and the queries for them.

    Args:
        keys: [m, E, D + 1].
        queries: [m, H / K, E, D + 1].
        moment: [D + 1, D + 1].
        rotary: dimensions that are turned; the first and the second half of them are pairs.
    """
    shared, changed = torch.empty_like(keys[0]), queries.clone()
    half = rotary // 2
    for first in range(half):
        second = first + half
        pair = torch.complex(keys[:, first], keys[:, second])  # [m, D + 1]
        factors = _basis(pair, moment, 1)[:, 0]  # [m]
        complex_key = factors.conj() @ pair
        shared[first], shared[second] = complex_key.real, complex_key.imag
        turned = torch.complex(queries[:, :, first], queries[:, :, second])
        turned = turned * factors.conj()[:, None, None]
        changed[:, :, first], changed[:, :, second] = turned.real, turned.imag
    rest = keys.shape[1] - rotary
    if rest:
        stacked = keys[:, rotary:].flatten(0, 1)
        basis = _basis(stacked, moment, rest)  # [m * rest, rest]
        shared[rotary:] = basis.T @ stacked
        by_head = basis.view(-1, rest, rest)
        changed[:, :, rotary:] = torch.einsum("mef,mhed->mhfd", by_head, queries[:, :, rotary:])
    return shared, changed
