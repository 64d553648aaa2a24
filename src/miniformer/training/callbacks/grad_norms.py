"""Gradient norms by layer, which show vanishing and exploding gradients."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

_NUMBERED_LAYER = re.compile(r"(?:(.+?)\.)??\w+\.\d+(?=\.)")  # "layers.0" and its prefix
_INPUT_MODULES = ("embedding", "position")  # applied before the layers of a stack


class GradientNorms:
    """Norms of a model's gradients by parameter group: `embedding`, `layers.0`, ..., `head`.

    A group is a numbered layer, or a module outside the layers. In a model of several stacks the
    name of the stack is a prefix: `encoder.layers.0`, `decoder.final_norm`. A tied weight counts
    once, under the first of its names.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name.replace("_orig_mod.", ""), p) for name, p in model.named_parameters()]
        layers = (_NUMBERED_LAYER.match(name) for name, _ in named)
        stacks = list(dict.fromkeys(layer[1] for layer in layers if layer and layer[1]))
        groups = {name: _group_name(name, stacks) for name, _ in named}
        self.group_names = sorted(dict.fromkeys(groups.values()), key=_forward_order)
        index = {group: i for i, group in enumerate(self.group_names)}
        self._parameters = [(index[groups[name]], parameter) for name, parameter in named]

    def compute(self) -> dict[str, float]:
        """Euclidean norm of each group's gradient, in the order of a forward pass.

        Groups without a gradient are omitted. The total norm is `math.hypot(*norms.values())`.
        The call synchronizes with the device once. It is collective for sharded gradients
        (DTensor): each rank gets the norms of the full gradients.
        """
        grads = [(group, p.grad) for group, p in self._parameters if p.grad is not None]
        if not grads:
            return {}
        norms = _grad_norms([grad for _, grad in grads])
        index = torch.tensor([group for group, _ in grads], device=norms.device)
        squares = norms.new_zeros(len(self.group_names)).index_add_(0, index, norms.square())
        seen = {group for group, _ in grads}
        values = squares.sqrt().tolist()
        return {name: values[i] for i, name in enumerate(self.group_names) if i in seen}


def _grad_norms(grads: list[Tensor]) -> Tensor:
    """Norms of gradients, [len(grads)], in float32 or float64."""
    dtype = torch.float32
    for grad in grads:
        dtype = torch.promote_types(dtype, grad.dtype)
    norms: list[Tensor] = list(torch._foreach_norm(grads, 2.0, dtype=dtype))
    full_norms = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    return torch.stack([norm.detach().to(full_norms[0].device) for norm in full_norms])


def _group_name(parameter_name: str, stacks: list[str]) -> str:
    """The group of a parameter: `encoder.layers.0.attention.q_proj.weight` -> `encoder.layers.0`.

    Args:
        parameter_name: the name in the model.
        stacks: names of the modules that hold numbered layers, without the model itself.
    """
    if layer := _NUMBERED_LAYER.match(parameter_name):
        return layer[0]
    for stack in stacks:
        if parameter_name.startswith(stack + "."):
            return f"{stack}.{parameter_name[len(stack) + 1 :].partition('.')[0]}"
    return parameter_name.partition(".")[0]


def _forward_order(group_name: str) -> tuple[bool, bool]:
    """Sort key of a group: a model defines its input modules after its layers."""
    is_input = "." not in group_name and any(name in group_name for name in _INPUT_MODULES)
    return not is_input, group_name != "embedding"
