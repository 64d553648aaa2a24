"""How long each layer's gradient is."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_PLACE = re.compile(r"^(.*?layers\.\d+)\.")


class GradientNorms:
    """Norms of a model's gradient by place: `embedding`, `layers.0`, ..., `head`.

    Args:
        model: whose gradients are measured.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def measure(self) -> dict[str, float]:
        """The norm of each place that has gradients; one wait for the device in all."""
        names, gradients = [], []
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                names.append(place(name))
                gradients.append(parameter.grad)
        if not gradients:
            return {}
        norms: Tensor = torch.stack(torch._foreach_norm(gradients))
        if isinstance(norms, DTensor):
            norms = norms.full_tensor()
        squares: dict[str, float] = {}
        for name, norm in zip(names, norms.tolist(), strict=True):
            squares[name] = squares.get(name, 0.0) + norm**2
        return {name: square**0.5 for name, square in squares.items()}


def place(name: str) -> str:
    """The part of the model that a parameter's name lies in."""
    found = _PLACE.match(name)
    return found[1] if found else name.partition(".")[0]
