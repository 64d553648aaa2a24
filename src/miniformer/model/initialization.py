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

from itertools import groupby

from torch import nn

from miniformer.model.head import Head
from miniformer.model.matrices import weight_matrices
from miniformer.model.position import LearnedPosition, RelativePosition


def initialize(model: nn.Module) -> None:
    """Initializes a model's weights with torch's global random generator."""
    matrices = [m for m in weight_matrices(model) if m.parameter is not None]
    num_residual = len({m.parameter_name for m in matrices if m.writes_to_residual})
    by_module = {id(module): [*group] for module, group in groupby(matrices, lambda m: m.module)}
    for module in model.modules():
        if isinstance(module, nn.Embedding | LearnedPosition):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, RelativePosition):
            nn.init.zeros_(module.weight)
        elif isinstance(module, Head):
            if module.weight is not None:
                nn.init.normal_(module.weight, std=0.02)
            if module.ordered:
                module.reset_thresholds()
        else:
            for matrix in by_module.get(id(module), ()):
                additions = num_residual if matrix.writes_to_residual else 1
                nn.init.normal_(matrix.weight, std=matrix.weight.shape[1] ** -0.5 / additions**0.5)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
