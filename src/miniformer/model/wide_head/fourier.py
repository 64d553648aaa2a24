"""Random Fourier features: a linear model of them approximates one with an RBF kernel.

Source: Rahimi & Recht 2007, "Random Features for Large-Scale Kernel Machines".
Letters: B batch, M inner features, K features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.model.wide_head.sparse import Inputs, linear_outputs


class FourierFeatures(nn.Module):
    """Cosines of random projections of the features of another group.

    The product of two examples' features is about exp(-|x - y|^2 / 2) with the rows x and y of
    their projections' variances (`directions`).

    Args:
        size: K.
        inner: module of the other group.

    Attributes:
        directions: [M, K].
        phases: [K].
    """

    directions: Tensor
    phases: Tensor

    def __init__(self, size: int, inner: Any) -> None:
        super().__init__()
        self.size, self.inner = size, inner
        self.register_buffer("directions", torch.zeros(inner.size, size))
        self.register_buffer("phases", torch.zeros(size))

    def forward(self, inputs: Inputs) -> Tensor:
        """Features, float32 [B, K], whose squares add up to about 1."""
        projections = linear_outputs(self.inner(inputs), self.directions.float())
        return torch.cos(projections + self.phases.float()) * math.sqrt(2 / self.size)
