"""RBF kernel of the features of another group, at training examples.

Source: Williams & Seeger 2001, "Using the Nyström Method to Speed Up Kernel Machines": a linear
model of the kernel's values at some training examples, the landmarks, stands for one at all of
them. If all are landmarks, it is the kernel model itself.

Letters: B batch, M inner features, K landmarks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from miniformer.model.wide_head.sparse import Inputs, SparseFeatures


class RbfFeatures(nn.Module):
    """Values exp(-scale |x - z|^2) for the inner features x of an input and z of each landmark.

    Args:
        size: K.
        inner: module of the other group, with its `size` M.

    Attributes:
        landmarks: their inner features, [M, K].
        scale: of the squared distance, [].
    """

    landmarks: Tensor
    scale: Tensor

    def __init__(self, size: int, inner: Any) -> None:
        super().__init__()
        self.size, self.inner = size, inner
        self.register_buffer("landmarks", torch.zeros(inner.size, size))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, inputs: Inputs) -> Tensor:
        """Values of the kernel, float32 [B, K], from 0 to 1."""
        return self.values(self._dense(self.inner(inputs)))

    def values(self, x: Tensor) -> Tensor:
        """Values of the kernel for inner features x, float32 [B, M]: [B, K]."""
        z = self.landmarks.float()
        squares = x.square().sum(1, keepdim=True) + z.square().sum(0)
        return torch.exp(-self.scale.float() * (squares - 2 * x @ z).clamp_min(0))

    def _dense(self, features: SparseFeatures | Tensor) -> Tensor:
        """Inner features, float32 [B, M]; of a column that occurs several times, the sum."""
        if not isinstance(features, SparseFeatures):
            return features.float()
        empty = features.values.new_zeros(features.values.shape[0], self.inner.size)
        return empty.scatter_add(1, features.columns, features.values).float()
