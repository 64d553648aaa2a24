"""Fit of an RBF kernel's features, compared with scikit-learn's kernel."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from miniformer.model.wide_head.series import NumberFeatures
from miniformer.training.tuning.wide_head.data import FittedGroup
from miniformer.training.tuning.wide_head.rbf import KernelGroup, fit_rbf, whitening


def fitted(size, gamma=0.5):
    """Features of 40 points in the plane, their values at these points, and the points."""
    points = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    module = fit_rbf({"size": size, "gamma": gamma}, NumberFeatures(4), points)
    values = module({"inputs": points.view(40, 2, 2), "attention_mask": None})
    return module, values, points


def reference(points, others, gamma=0.5):
    variance = float(points.numpy().var(0).sum())
    return rbf_kernel(points.numpy(), others.numpy(), gamma=gamma / variance)


@pytest.mark.catches("landmarks_ignore_the_variance")
def test_values_are_those_of_the_kernel_at_the_landmarks():
    module, values, points = fitted(7)
    expected = reference(points, module.landmarks.t())
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    for landmark in module.landmarks.t():
        assert (points == landmark).all(1).any()  # a training example


@pytest.mark.catches("kernel_is_not_whitened")
@pytest.mark.parametrize("size", [40, 12])
def test_products_of_whitened_values_are_the_kernel(size):
    """Of all points exactly, of some the kernel that they determine (Williams & Seeger 2001)."""
    module, values, points = fitted(size)
    whitened = (values @ whitening(module)).double().numpy()
    landmarks = module.landmarks.t()
    cross = reference(points, landmarks)
    expected = cross @ np.linalg.solve(
        reference(points, landmarks)[[(points == x).all(1).int().argmax() for x in landmarks]]
        + 1e-4 * np.eye(size),
        cross.T,
    )
    np.testing.assert_allclose(whitened @ whitened.T, expected, atol=1e-4)
    if size == 40:
        np.testing.assert_allclose(whitened @ whitened.T, reference(points, points), atol=1e-3)


def test_more_landmarks_than_examples_are_zeros():
    """A config with more landmarks than a run has examples keeps its size."""
    points = torch.randn(3, 2)
    module = fit_rbf({"size": 5}, NumberFeatures(2), points)
    assert module.landmarks[:, 3:].abs().sum() == 0
    assert torch.isfinite(whitening(module)).all()


@pytest.mark.catches("rows_of_a_kernel_are_the_first_ones")
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_of_a_kernel_are_those_of_its_block_and_of_the_model(sparse):
    """The block is computed in parts, and some rows without the others."""
    points = torch.randn(2500, 4, generator=torch.Generator().manual_seed(0)).relu()
    settings = {"type": "numbers", "size": 4}
    inner = FittedGroup(settings, NumberFeatures(4), points.to_sparse() if sparse else points)
    group = KernelGroup({"type": "rbf", "size": 30, "gamma": 0.5}, inner)
    assert group.settings == {"type": "rbf", "size": 30, "gamma": 0.5, "of": settings}
    rows = torch.tensor([2499, 3, 1200])
    values = group.module({"inputs": points[rows].view(3, 2, 2), "attention_mask": None})
    expected = values @ whitening(group.module)
    torch.testing.assert_close(group.rows(rows), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(group.block[rows], expected, atol=1e-4, rtol=1e-4)
    weight = torch.randn(30, 2)
    torch.testing.assert_close(
        values @ group.own_weight(weight), expected @ weight, atol=1e-3, rtol=1e-3
    )
