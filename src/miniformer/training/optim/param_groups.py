"""Parameter groups: weight decay and learning rate scale of each layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from miniformer.model.matrices import layer_of, weight_matrices


def build_param_groups(
    model: nn.Module, *, weight_decay: float, layer_lr_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups the trainable parameters of a model for an optimizer.

    Only the weights of linear maps decay, not norms, biases and embeddings.

    Args:
        model: a Transformer, a Seq2SeqTransformer, or another module.
        weight_decay: weight decay of the groups that decay.
        layer_lr_decay: factor on the learning rate from each layer to the one below it (ELECTRA,
            Clark et al. 2020): 1 for the head, `layer_lr_decay` for the last layer of each stack,
            the lowest for the embeddings.

    Returns:
        Groups with `params`, `weight_decay` and `lr_scale`, a factor on the learning rate.
    """
    matrix_ids = {id(matrix.parameter) for matrix in weight_matrices(model)}
    layer_counts = _layer_counts(model)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) in matrix_ids
        scale = layer_lr_decay ** _distance_from_head(name, layer_counts)
        group = groups.setdefault(
            (decays, scale),
            {"params": [], "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _layer_counts(model: nn.Module) -> dict[str, int]:
    """Number of layers of each stack, by the prefix of their parameter names."""
    counts: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if location := layer_of(name):
            stack, layer = location
            counts[stack] = max(counts.get(stack, 0), layer + 1)
    return counts


def _distance_from_head(name: str, depths: dict[str, int]) -> int:
    """Number of layers from the head down to a parameter."""
    if location := layer_of(name):
        stack_name, layer = location
        return depths[stack_name] - layer
    if "embedding" in name or "position" in name:
        stack = max((prefix for prefix in depths if name.startswith(prefix)), key=len, default=None)
        # A seq2seq model's embeddings belong to no stack; one of them can serve both.
        deepest = max(depths.values(), default=-1) if stack is None else depths[stack]
        return deepest + 1
    return 0
