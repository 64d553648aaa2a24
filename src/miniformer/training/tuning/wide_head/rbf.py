"""Fit of an RBF kernel's features: landmarks of the training examples, and a width by variance."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from miniformer.model.wide_head.rbf import RbfFeatures
from miniformer.training.tuning.wide_head.data import FittedGroup
from miniformer.training.tuning.wide_head.matrix import FeatureMatrix, select_rows

NUM_LANDMARKS = 1000
GAMMAS = (0.0625, 0.25, 1.0, 4.0)  # of the RBF kernel exp(-gamma |x - y|^2 / total variance)
_CHUNK = 1000  # examples whose inner features are dense at once
_JITTER = 1e-4  # on the diagonal of the landmarks' kernel; less would amplify rounding


class KernelGroup(FittedGroup):
    """RBF kernel of the features of a fitted group; its block is computed when it is needed.

    The features of the block are whitened, those of the module are not.

    Args:
        settings: `size`, the number of landmarks, and `gamma`.
        inner: the fitted group.
    """

    def __init__(self, settings: dict[str, Any], inner: FittedGroup) -> None:
        self.settings, self.inner = {**settings, "of": inner.settings}, inner
        self.module = fit_rbf(settings, inner.module, inner.block)
        self._whitening = whitening(self.module)

    @functools.cached_property
    def block(self) -> Tensor:
        """Whitened features of the training examples, [n, K]."""
        rows = torch.arange(self.inner.block.shape[0])
        return torch.cat([self.rows(part) for part in torch.split(rows, _CHUNK)])

    def rows(self, rows: Tensor) -> Tensor:
        """Rows of `block`, without the others."""
        values: Tensor = self.module.values(self.inner.rows(rows).to_dense().float())
        return values @ self._whitening

    def own_weight(self, weight: Tensor) -> Tensor:
        """Weights of the kernel's values, from those of the whitened features: [K, C]."""
        return self._whitening @ weight


def fit_rbf(group: dict[str, Any], inner: Any, block: Tensor) -> RbfFeatures:
    """Features at random training examples.

    Args:
        group: `size`, the number of landmarks, and `gamma`.
        inner: fitted module of the inner group.
        block: inner features of the training examples, [n, M].
    """
    features = RbfFeatures(group["size"], inner)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(block.shape[0], generator=generator)[: features.size]
    landmarks = select_rows(block, rows).to_dense()
    features.landmarks[:, : len(rows)] = landmarks.t()  # a run with fewer examples has zeros
    features.scale.fill_(group.get("gamma", 1.0) / _total_variance(block))
    return features


def whitening(features: RbfFeatures) -> Tensor:
    """Matrix [K, K] after which products of features are about values of the kernel.

    An L2 penalty on a linear model of the whitened features is the one of a kernel model (Yang et
    al. 2012, "Nyström Method vs Random Fourier Features"). The model's weights times this matrix
    are those of the features themselves.
    """
    landmarks = features.landmarks.double()
    distances = torch.cdist(landmarks.t(), landmarks.t()).square()
    kernel = torch.exp(-features.scale.double() * distances)
    kernel.diagonal().add_(_JITTER)
    factor = torch.linalg.cholesky(kernel)
    identity = torch.eye(features.size, dtype=torch.float64)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.t().float()


def _total_variance(block: Tensor) -> float:
    """Sum of the variances of all inner features."""
    ones = torch.full((block.shape[0], 1), 1 / block.shape[0])
    means = FeatureMatrix([block]).transposed_product(ones)[:, 0]
    values = block.coalesce().values() if block.is_sparse else block
    mean_square = float(values.double().square().sum()) / block.shape[0]
    return max(mean_square - float(means.double().square().sum()), 1e-12)
