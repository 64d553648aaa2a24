"""Gradient norms by layer: where a model learns, and where its gradient vanishes or explodes."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

_NUMBERED_LAYER = re.compile(r"(?:(.+)\.)?\w+\.\d+(?=\.)")  # "layers.0" and what comes before it
_INPUT_MODULES = ("embedding", "position")  # what a stack does before its layers


class GradientNorms:
    """Norms of a model's gradients, place by place: `embedding`, `layers.0`, ..., `head`.

    A place is a numbered layer, or a part beside the layers; in a model of several stacks it
    carries its stack's name: `encoder.layers.0`, `decoder.final_norm`. A tied weight counts once,
    where it lives.

    Args:
        model: whose gradients are measured.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name.replace("_orig_mod.", ""), p) for name, p in model.named_parameters()]
        layers = (_NUMBERED_LAYER.match(name) for name, _ in named)
        stacks = list(dict.fromkeys(layer[1] for layer in layers if layer and layer[1]))
        places = {name: _group_name(name, stacks) for name, _ in named}
        self.group_names = sorted(
            dict.fromkeys(places.values()), key=lambda place: _forward_order(place, stacks)
        )
        index = {place: i for i, place in enumerate(self.group_names)}
        self._parameters = [(index[places[name]], parameter) for name, parameter in named]

    def compute(self) -> dict[str, float]:
        """Euclidean norm of each place's gradient, in the order of a forward pass.

        Places without a gradient are left out. The norm of the whole gradient is
        `math.hypot(*norms.values())`. The host waits for the device once. Where gradients are
        sharded (DTensor), each process gets the norms of the whole, so all must call this.
        """
        grads = [(place, p.grad) for place, p in self._parameters if p.grad is not None]
        if not grads:
            return {}
        norms = _grad_norms([grad for _, grad in grads])
        index = torch.tensor([place for place, _ in grads], device=norms.device)
        squares = norms.new_zeros(len(self.group_names)).index_add_(0, index, norms.square())
        seen = {place for place, _ in grads}
        values = squares.sqrt().tolist()
        return {name: values[i] for i, name in enumerate(self.group_names) if i in seen}


def _grad_norms(grads: list[Tensor]) -> Tensor:
    """One norm for each gradient, [len(grads)], in float32 at least."""
    dtype = torch.float32
    for grad in grads:
        dtype = torch.promote_types(dtype, grad.dtype)
    norms: list[Tensor] = list(torch._foreach_norm(grads, 2.0, dtype=dtype))
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    return torch.stack([norm.detach().to(whole[0].device) for norm in whole])


def _group_name(parameter_name: str, stacks: list[str]) -> str:
    """The place of a parameter: `encoder.layers.0.attention.q_proj.weight` -> `encoder.layers.0`.

    Args:
        name: of the parameter.
        stacks: names of the modules that hold numbered layers, but for the model itself.
    """
    if layer := _NUMBERED_LAYER.match(parameter_name):
        return layer[0]
    for stack in stacks:
        if parameter_name.startswith(stack + "."):
            return f"{stack}.{parameter_name[len(stack) + 1 :].partition('.')[0]}"
    return parameter_name.partition(".")[0]


def _forward_order(group_name: str, stacks: list[str]) -> tuple[int, int, bool]:
    """Where a place stands in a forward pass: what embeds, the layers, what comes after them."""
    holders = [i for i, stack in enumerate(stacks) if group_name.startswith(stack + ".")]
    own = group_name[len(stacks[holders[0]]) + 1 :] if holders else group_name
    when = (
        0 if any(word in own for word in _INPUT_MODULES) else 1 if group_name[-1].isdigit() else 2
    )
    if holders:
        return 1 + holders[0], when, own != "embedding"
    # The model's own embedding comes before its stacks, its own head after them.
    return (0 if when == 0 else 1 + len(stacks)), when, own != "embedding"
