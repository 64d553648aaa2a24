"""Initial values of every weight, in one place.

| what                                   | value                                             |
|----------------------------------------|---------------------------------------------------|
| token embedding                        | normal, 0.02 (GPT-2, Radford et al. 2019)         |
| linear maps                            | normal, 1 / sqrt(inputs): unit variance is kept   |
| maps that write to the residual stream | the same / sqrt(2 * n_layers) (GPT-2)             |
| head of its own                        | normal, 0.02: first predictions are near uniform  |
| biases, norms                          | zero, one                                         |
"""

from __future__ import annotations

from torch import nn

_RESIDUAL_WRITERS = ("o_proj", "down_proj")


def initialize(model: nn.Module, *, n_layers: int) -> None:
    """Sets the weights of a model of `n_layers` layers from torch's global random generator."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            std = 0.02 if last == "head" else module.in_features**-0.5
            if last in _RESIDUAL_WRITERS:
                std /= (2 * n_layers) ** 0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
