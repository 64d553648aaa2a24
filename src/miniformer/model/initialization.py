"""Initial values of all weights.

| weights                                 | value                                             |
|-----------------------------------------|---------------------------------------------------|
| embeddings, learned positions           | normal, 0.02 (GPT-2, Radford et al. 2019)         |
| linear layers                           | normal, 1 / sqrt(inputs): preserves unit variance |
| linear layers before residual additions | the same / sqrt(number of them) (GPT-2)           |
| untied head                             | normal, 0.02: near uniform first predictions      |
| biases (relative positions too), norms  | zero, one                                         |
| thresholds of ordered classes           | those of equally frequent classes                 |
"""

from __future__ import annotations

from torch import nn

from miniformer.model.head import Head
from miniformer.model.position import LearnedPosition, RelativePosition

_RESIDUAL_PROJECTIONS = ("o_proj", "down_proj")


def initialize(model: nn.Module) -> None:
    """Initializes a model's weights with torch's global random generator."""
    names = [name.rpartition(".")[2] for name, _ in model.named_modules()]
    num_projections = sum(name in _RESIDUAL_PROJECTIONS for name in names)
    for name, (_, module) in zip(names, model.named_modules(), strict=True):
        if isinstance(module, nn.Embedding | LearnedPosition):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, RelativePosition):
            nn.init.zeros_(module.weight)
        elif isinstance(module, Head):
            if module.weight is not None:
                nn.init.normal_(module.weight, std=0.02)
            if module.ordered:
                module.reset_thresholds()
        elif isinstance(module, nn.Linear):
            std = module.in_features**-0.5
            if name in _RESIDUAL_PROJECTIONS:
                std /= num_projections**0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
