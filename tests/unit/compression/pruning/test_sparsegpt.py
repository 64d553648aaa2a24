"""SparseGPT, against Optimal Brain Surgeon with an inverse for each column in float64."""

import numpy as np
import pytest
import torch

from miniformer.compression.calibration.gptq import DAMPING
from miniformer.compression.pruning import sparsegpt
from miniformer.compression.pruning.magnitude import magnitude_mask
from miniformer.compression.pruning.sparsegpt import sparse_matrix


def reference(weight, hessian, sparsity, block):
    """Each column in order: the inverse of the Hessian of the columns that remain."""
    weight = weight.copy()
    rows, width = weight.shape
    stays = np.ones_like(weight, dtype=bool)
    done = 0
    for column in range(width):
        inverses = {
            k: np.linalg.inv(hessian[k:, k:])[0, 0]
            for k in range(column, min(column + max(block, 4), width))
        }
        if sparsity == "2:4" and column % 4 == 0:
            for row in range(rows):
                scores = [weight[row, column + k] ** 2 / inverses[column + k] for k in range(4)]
                for k in np.argsort(scores)[:2]:
                    stays[row, column + k] = False
        if sparsity != "2:4" and column % block == 0:
            stop = min(column + block, width)
            total = int(sparsity * rows * stop + 0.5)
            scores = [
                (weight[row, k] ** 2 / inverses[k], row, k)
                for row in range(rows)
                for k in range(column, stop)
            ]
            for _, row, k in sorted(scores)[: total - done]:
                stays[row, k] = False
            done = total
        inverse = np.linalg.inv(hessian[column:, column:])
        for row in range(rows):
            if not stays[row, column]:
                weight[row, column:] -= weight[row, column] / inverse[0, 0] * inverse[0]
                weight[row, column] = 0.0
    return weight


@pytest.fixture(scope="module")
def inputs():
    """Inputs that depend on each other, [N, I]."""
    dice = torch.Generator().manual_seed(0)
    mixed = torch.randn(90, 12, generator=dice) @ torch.randn(12, 20, generator=dice)
    return mixed + 0.3 * torch.randn(90, 20, generator=dice)


@pytest.mark.catches("sparsegpt_carries_no_error", "two_of_four_are_outputs")
@pytest.mark.parametrize("sparsity", [0.5, 0.3, "2:4"])
def test_it_equals_the_surgeon_of_each_column(sparsity, inputs, monkeypatch):
    monkeypatch.setattr(sparsegpt, "BLOCK", 8)  # 20 columns: two blocks and a half
    weight = torch.randn(7, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = inputs.double().T @ inputs.double()
    damped = moments.numpy() + DAMPING * moments.diagonal().mean().item() * np.eye(20)
    expected = reference(weight.numpy(), damped, sparsity, 8)
    result = sparse_matrix(weight, moments, sparsity)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-9)
    zeros = int((result == 0).sum())
    assert zeros == (70 if sparsity == "2:4" else int(sparsity * 140 + 0.5))


@pytest.mark.catches("sparsegpt_carries_no_error")
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_outputs_change_less_than_by_magnitude(sparsity, inputs):
    weight = torch.randn(200, 20, generator=torch.Generator().manual_seed(2))
    moments = inputs.double().T @ inputs.double()
    result = sparse_matrix(weight, moments, sparsity)
    plain = weight * magnitude_mask(weight, sparsity)
    errors = [(inputs @ (x - weight).T).square().sum() for x in (result, plain)]
    assert errors[0] < 0.8 * errors[1]
    assert int((result == 0).sum()) == 2000


def test_inputs_that_never_occur():
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(3)).bfloat16()
    result = sparse_matrix(weight, torch.zeros(20, 20, dtype=torch.float64), 0.5)
    assert torch.equal(result, weight * magnitude_mask(weight, 0.5))
