"""Models without some of their heads, feed-forward columns or layers: all tensors are smaller.

The result computes what the model computes with the outputs of the removed parts at zero, and of a
removed layer with its input as its output. All attentions have equally many heads, and all
feed-forwards equally many columns, since the config has one number for them.

Letters: H query heads, K heads of keys and values, E head width, D model width, F inner width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig, UserError
from miniformer.model.attention import CrossAttention, MultiHeadAttention
from miniformer.model.feed_forward import FeedForward
from miniformer.model.stack import Stack

Indices = Mapping[str, Sequence[int]]  # those that stay, by path of a module, ascending


def stacks(model: nn.Module) -> dict[str, Stack]:
    """The stacks of a model by path: `encoder` and `decoder`, or one with the path ``."""
    return {path: part for path, part in model.named_modules() if isinstance(part, Stack)}


def attentions(model: nn.Module) -> dict[str, MultiHeadAttention]:
    """The attentions of a model by path, those to a source too."""
    parts = model.named_modules()
    return {path: part for path, part in parts if isinstance(part, MultiHeadAttention)}


def feed_forwards(model: nn.Module) -> dict[str, FeedForward]:
    """The feed-forwards of a model by path."""
    return {path: part for path, part in model.named_modules() if isinstance(part, FeedForward)}


def num_units(config: TransformerConfig) -> int:
    """Parts of an attention that can be removed: see `unit_size`."""
    return config.n_heads if config.kv_heads == 1 else config.kv_heads


def unit_size(config: TransformerConfig) -> int:
    """Query heads of a removable part: those of a head of keys and values; of a single one, 1."""
    return config.n_heads // num_units(config)


def check_heads(model: Any) -> None:
    """Checks that heads of a model can be removed.

    Raises:
        UserError: what the other heads compute would depend on the removed ones.
    """
    config: TransformerConfig = model.config
    _check_types(model, attentions(model), (MultiHeadAttention, CrossAttention), "attention")
    if config.qk_norm == "projection":
        raise UserError(
            "heads: qk_norm=projection normalizes all heads together, so the others would change; "
            "remove ffn or layers"
        )
    is_built_in = config.position in registry.builtin_names("position")
    adds_bias = any(stack.position.adds_bias for stack in stacks(model).values())
    if config.position == "alibi" or (adds_bias and not is_built_in):
        raise UserError(
            f"heads: the slopes of position={config.position} follow from the number of heads, so "
            "the others would change; remove ffn or layers"
        )


def check_columns(model: Any) -> None:
    """Checks that feed-forward columns of a model can be removed.

    Raises:
        UserError: a feed-forward is not the built-in one.
    """
    _check_types(model, feed_forwards(model), (FeedForward,), "feed_forward")


def _check_types(
    model: Any, parts: Mapping[str, nn.Module], known: tuple[type, ...], field: str
) -> None:
    value = getattr(model.config, field)
    if value != "standard" or any(type(part) not in known for part in parts.values()):
        raise UserError(f"prune: {field}={value} is no built-in part, whose weights are known")


def keep_layers(model: Any, retained: Indices) -> Any:
    """A model with some of the layers.

    Args:
        model: a Transformer or Seq2SeqTransformer; it is not changed.
        retained: layers by path of a stack; all layers of another stack stay.

    Raises:
        UserError: no config describes the windows of the layers that stay.
    """
    config: TransformerConfig = model.config
    layers = {path: range(len(stack.layers)) for path, stack in stacks(model).items()}
    chosen: dict[str, Sequence[int]] = {**layers, **retained}
    weights = dict(model.state_dict())
    for path, indices in chosen.items():
        prefix = f"{path}.layers." if path else "layers."
        own = {name: weights.pop(name) for name in [*weights] if name.startswith(prefix)}
        new_index = {str(old): str(new) for new, old in enumerate(indices)}
        for name, tensor in own.items():
            index, _, rest = name.removeprefix(prefix).partition(".")
            if index in new_index:
                weights[f"{prefix}{new_index[index]}.{rest}"] = tensor
    fields: dict[str, Any] = {"window_pattern": _window_pattern(config, [*chosen.values()])}
    if "decoder" in chosen:
        fields |= {"n_layers": len(chosen["encoder"]), "n_decoder_layers": len(chosen["decoder"])}
    else:
        fields["n_layers"] = len(chosen[""])
    return _build(model, dataclasses.replace(config, **fields), weights)


def _window_pattern(config: TransformerConfig, stacks_layers: list[Sequence[int]]) -> str | None:
    """Pattern that gives the layers that stay the windows that they have."""
    pattern = config.window_pattern
    if pattern is None:
        return None
    letters = ["".join(pattern[i % len(pattern)] for i in layers) for layers in stacks_layers]
    for candidate in (pattern, max(letters, key=len)):
        repeated = candidate * max(map(len, letters))
        if all(repeated.startswith(own) for own in letters):
            return candidate
    raise UserError(
        "layers: encoder and decoder share window_pattern, and no pattern fits the layers that "
        f"stay ({', '.join(letters)}); remove layers of one of them"
    )


def keep_units(model: Any, heads: Indices, columns: Indices) -> Any:
    """A model with some of the heads and feed-forward columns.

    Args:
        model: a Transformer or Seq2SeqTransformer; it is not changed.
        heads: units (see `unit_size`) by path of an attention, equally many of each; empty: all.
            With T5's positions, those of a stack have the same, except those to a source.
        columns: columns by path of a feed-forward, equally many of each; empty: all.
    """
    config: TransformerConfig = model.config
    weights = dict(model.state_dict())
    fields: dict[str, Any] = {}
    for path, units in heads.items():
        _slice_attention(weights, path, config, units)
        fields = _head_fields(config, len(units))
    if heads and config.position == "t5_relative":
        for path in stacks(model):
            own = next(name for name in heads if stack_of(name) == path and "cross" not in name)
            index = torch.tensor(_query_heads(config, heads[own]))
            _slice(weights, _join(path, "position.weight"), index, dim=1)
    for path, indices in columns.items():
        index = torch.tensor(indices)
        for name in ("up_proj", "gate_proj"):
            _slice(weights, f"{path}.{name}.weight", index)
            _slice(weights, f"{path}.{name}.bias", index)
        _slice(weights, f"{path}.down_proj.weight", index, dim=1)
        fields["d_ff"] = len(indices)
    return _build(model, dataclasses.replace(config, **fields), weights)


def _head_fields(config: TransformerConfig, units: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "n_heads": units * unit_size(config),
        "head_dim": config.head_width,
    }
    if config.n_kv_heads is not None and config.kv_heads > 1:
        fields["n_kv_heads"] = units
    return fields


def _slice_attention(
    weights: dict[str, Tensor], path: str, config: TransformerConfig, units: Sequence[int]
) -> None:
    """Replaces the weights of an attention by those of the units that stay."""
    queries = torch.tensor(_query_heads(config, units))
    shared = torch.tensor(units) if config.kv_heads > 1 else torch.tensor([0])
    for name, heads in (("q_proj", queries), ("k_proj", shared), ("v_proj", shared)):
        rows = _elements(heads, config.head_width)
        _slice(weights, f"{path}.{name}.weight", rows)
        _slice(weights, f"{path}.{name}.bias", rows)
    _slice(weights, f"{path}.o_proj.weight", _elements(queries, config.head_width), dim=1)
    _slice(weights, f"{path}.sinks", queries)


def _query_heads(config: TransformerConfig, units: Sequence[int]) -> list[int]:
    size = unit_size(config)
    return [unit * size + head for unit in units for head in range(size)]


def _elements(heads: Tensor, width: int) -> Tensor:
    """Indices of the elements of heads in a projection."""
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _slice(weights: dict[str, Tensor], name: str, index: Tensor, dim: int = 0) -> None:
    if name in weights:
        weights[name] = weights[name].index_select(dim, index.to(weights[name].device))


def stack_of(path: str) -> str:
    """Path of the stack whose layers have a module."""
    return path.partition("layers.")[0].rstrip(".")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _build(model: Any, config: TransformerConfig, weights: Mapping[str, Tensor]) -> Any:
    """A model of the same class with other weights, which are copied."""
    with torch.device("meta"):
        result = type(model)(config)
    copies = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    result.load_state_dict(copies, assign=True)
    result.extra_files, result.requires = model.extra_files, model.requires
    return result.train(model.training)
