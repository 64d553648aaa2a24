"""Features of convolutions of a series, in the manner of MiniRocket (Dempster et al. 2021).

A kernel has 9 weights, three of which are 2 and six -1: one of 84, at a dilation. It reads the sum
of some of the features of the series. A feature is the share of the positions at which the
convolution is above a threshold, one of the quantiles of the training data.

Letters: B batch, T length, F numbers of a vector, D dilations, Q thresholds of a kernel. There are
K = 84 D Q features.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.model.wide_head.series import DenseFeatures, masked_vectors
from miniformer.model.wide_head.sparse import Inputs

LENGTH = 9  # weights of a kernel
NUM_KERNELS = 84  # 9 choose 3


class KernelFeatures(DenseFeatures):
    """Shares of positions at which convolutions are above thresholds.

    Args:
        size: K.
        width: F.
        dilations: D; the dilations are 1, 2, 4, ...

    Attributes:
        channels: 1 for each feature of the series that a kernel reads, [D, 84, F].
        thresholds: [D, 84, Q].
    """

    channels: Tensor
    thresholds: Tensor

    def __init__(self, size: int, width: int, dilations: int) -> None:
        super().__init__(size)
        shape = (dilations, NUM_KERNELS)
        self.dilations = dilations
        self.register_buffer("channels", torch.ones(*shape, width))
        self.register_buffer("thresholds", torch.zeros(*shape, size // (dilations * NUM_KERNELS)))

    def compute(self, inputs: Inputs) -> Tensor:
        """Shares of each dilation, threshold and kernel, float32 [B, K]."""
        _, mask = masked_vectors(inputs)
        real, count = mask[:, None].float(), mask.sum(1).clamp_min(1)
        fractions = []
        for level in range(self.dilations):
            outputs = self.convolve(inputs, level)  # [B, 84, T]
            for threshold in self.thresholds[level].float().unbind(-1):
                above = (outputs > threshold[:, None]) * real
                fractions.append(above.sum(-1) / count[:, None])
        return torch.cat(fractions, 1)

    def convolve(self, inputs: Inputs, level: int) -> Tensor:
        """Convolutions with the 84 kernels of a dilation, float32 [B, 84, T]; zeros surround it."""
        vectors, mask = masked_vectors(inputs)
        signal = (vectors * mask[..., None]).transpose(1, 2)  # [B, F, T]
        weights = kernel_weights().to(signal)[:, None] * self.channels[level].float()[..., None]
        dilation = 2**level
        return F.conv1d(signal, weights, padding=dilation * (LENGTH // 2), dilation=dilation)


def kernel_weights() -> Tensor:
    """The weights of all kernels, [84, 9]; those of a kernel add up to 0."""
    return torch.tensor(
        [
            [2.0 if column in large else -1.0 for column in range(LENGTH)]
            for large in combinations(range(LENGTH), 3)
        ]
    )
