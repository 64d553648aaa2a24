"""Which parameters decay, and how fast each layer learns."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from miniformer.model.head import Head

_LAYER_PATTERN = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def build_param_groups(
    model: nn.Module, *, weight_decay: float, layer_lr_decay: float = 1.0
) -> list[dict[str, Any]]:
    """A model's parameters in groups for an optimiser; frozen ones are left out.

    Only the weights of linear maps decay: not norms, biases and embeddings.

    Args:
        model: a Transformer, a Seq2SeqTransformer, or any other.
        weight_decay: of the groups that decay.
        layer_lr_decay: factor on the learning rate from each layer to the one below it (ELECTRA,
            Clark et al. 2020): the head has 1, the last layer of each stack this, the embeddings
            the lowest.

    Returns:
        Groups with `params`, `weight_decay` and `lr_scale`, by which whoever sets the learning
        rate multiplies it.
    """
    maps = [module for module in model.modules() if isinstance(module, nn.Linear | Head)]
    matrices = {id(module.weight) for module in maps if module.weight is not None}
    depths = _layer_counts(model)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) in matrices
        scale = layer_lr_decay ** _distance_from_head(name, depths)
        group = groups.setdefault(
            (decays, scale),
            {"params": [], "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _layer_counts(model: nn.Module) -> dict[str, int]:
    """How many layers each stack has, by what stands before `layers` in their names."""
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if found := _LAYER_PATTERN.search(name):
            stack = name[: found.start()]
            depths[stack] = max(depths.get(stack, 0), int(found[1]) + 1)
    return depths


def _distance_from_head(name: str, depths: dict[str, int]) -> int:
    """How many steps a parameter lies below the head."""
    if found := _LAYER_PATTERN.search(name):
        return depths[name[: found.start()]] - int(found[1])
    if "embedding" in name or "position" in name:
        stack = max((each for each in depths if name.startswith(each)), key=len, default=None)
        # A seq2seq model's embeddings belong to no stack; one of them can serve both.
        deepest = max(depths.values(), default=-1) if stack is None else depths[stack]
        return deepest + 1
    return 0
