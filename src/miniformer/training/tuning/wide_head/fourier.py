"""Fit of random Fourier features: directions by the variance of the inner features."""

from __future__ import annotations

import math
from typing import Any

import torch

from miniformer.model.wide_head.fourier import FourierFeatures
from miniformer.training.tuning.wide_head.matrix import FeatureMatrix

NUM_FEATURES = 1000
GAMMAS = (0.25, 1.0, 4.0)  # of the RBF kernel exp(-gamma |x - y|^2 / total variance)


def fit_fourier(group: dict[str, Any], inner: Any, block: torch.Tensor) -> FourierFeatures:
    """Features whose products approximate the RBF kernel of the group's `gamma`.

    Args:
        group: the group.
        inner: fitted module of the inner group.
        block: inner features of the training examples, [n, M].
    """
    features = FourierFeatures(group["size"], inner)
    ones = torch.full((block.shape[0], 1), 1 / block.shape[0])
    means = FeatureMatrix([block]).transposed_product(ones)[:, 0]
    squares = block.coalesce().values() if block.is_sparse else block
    mean_square = float(squares.double().square().sum()) / block.shape[0]
    variance = max(mean_square - float(means.double().square().sum()), 1e-12)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(features.directions.shape, generator=generator)
    features.directions.copy_(directions * math.sqrt(2 * group.get("gamma", 1.0) / variance))
    features.phases.copy_(torch.rand(features.size, generator=generator) * (2 * math.pi))
    return features
