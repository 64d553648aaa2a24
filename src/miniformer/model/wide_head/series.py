"""Features of inputs that are lists of vectors: the numbers themselves, and their statistics.

All are standardized with means and standard deviations of the training data, and divided by the
square root of their number, so that an example's squared features add up to 1 on average.

Letters: B batch, T length, F numbers of a vector, K features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniformer.model.wide_head.sparse import Inputs

NUM_STATISTICS = 10  # of each feature of a series


class DenseFeatures(nn.Module):
    """Base class of standardized dense features.

    Args:
        size: number of features, K.

    Attributes:
        means: of the training data, [K].
        scales: factors of the differences from the means, [K]; 0: a constant feature.
    """

    means: Tensor
    scales: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("means", torch.zeros(size))
        self.register_buffer("scales", torch.ones(size))

    def forward(self, inputs: Inputs) -> Tensor:
        """Standardized features, float32 [B, K].

        Args:
            inputs: `inputs`, vectors, float [B, T, F]; `attention_mask`, bool [B, T], True = a real
                position, or None: all are.
        """
        return (self.compute(inputs) - self.means.float()) * self.scales.float()

    def compute(self, inputs: Inputs) -> Tensor:
        """Features before standardization, float32 [B, K]; see `forward`."""
        raise NotImplementedError

    def standardize(self, values: Tensor) -> None:
        """Sets means and scales to those of the training data, [n, K]."""
        values = values.double()
        means, stds = values.mean(0), values.std(0, correction=0)
        is_constant = stds <= 1e-6 * means.abs() + 1e-12
        count = max(1, int((~is_constant).sum()))
        self.means.copy_(means)
        self.scales.copy_((1 / (stds * count**0.5)).masked_fill(is_constant, 0.0))


class NumberFeatures(DenseFeatures):
    """All numbers of inputs of one length, T * F = K; shorter inputs are padded with zeros."""

    def compute(self, inputs: Inputs) -> Tensor:
        """The numbers, float32 [B, K]."""
        vectors, mask = masked_vectors(inputs)
        numbers = (vectors * mask[..., None]).flatten(1)
        # One form for shorter and longer inputs, since an exported program has no branch on sizes.
        return nn.functional.pad(numbers, (0, self.size))[:, : self.size]


class StatisticFeatures(DenseFeatures):
    """Statistics of each feature of a series of any length, K = 10 F + 1.

    Mean, standard deviation, least, largest, first and last number, slope of the least-squares
    line, mean absolute change, and the means of the first and of the last third; and the logarithm
    of the length.
    """

    def compute(self, inputs: Inputs) -> Tensor:
        """Each statistic of all features, float32 [B, K]."""
        vectors, mask = masked_vectors(inputs)
        real, count = mask[..., None], mask.sum(1, keepdim=True).clamp_min(1)  # [B, T, 1], [B, 1]
        mean = (vectors * real).sum(1) / count
        centered = (vectors - mean[:, None]) * real
        std = (centered.square().sum(1) / count).sqrt()
        low = vectors.masked_fill(~real, torch.inf).amin(1)
        high = vectors.masked_fill(~real, -torch.inf).amax(1)
        rank = mask.cumsum(1) - 1  # of a real position among those of its row
        first = (vectors * (real & (rank == 0)[..., None])).sum(1)
        last = (vectors * (real & (rank == count - 1)[..., None])).sum(1)
        time = (rank - (count - 1) / 2) * mask
        squares = time.square().sum(1, keepdim=True).clamp_min(1e-6)
        slope = (time[..., None] * centered).sum(1) / squares * (count - 1)
        # Of each position and the one before, which the first has not.
        before = nn.functional.pad(vectors, (0, 0, 1, 0))[:, : vectors.shape[1]]
        both = (mask & nn.functional.pad(mask, (1, 0))[:, : mask.shape[1]])[..., None]
        change = ((vectors - before).abs() * both).sum(1) / (count - 1).clamp_min(1)
        thirds = []
        for part in (3 * rank < count, 3 * (rank + 1) > 2 * count):
            part = part & mask
            thirds.append((vectors * part[..., None]).sum(1) / part.sum(1, keepdim=True))
        values = [mean, std, low, high, first, last, slope, change, *thirds]
        return torch.cat([*values, count.float().log()], 1)


def masked_vectors(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Vectors, float32 [B, T, F], and their mask, bool [B, T], of `DenseFeatures.forward`."""
    vectors, mask = inputs["inputs"], inputs.get("attention_mask")
    assert vectors is not None
    if mask is None:
        mask = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    return vectors.float(), mask
