"""Masks by magnitude and Wanda, against sorts of single weights in Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.compression.pruning.magnitude import (
    magnitude_mask,
    wanda_mask,
    zeros_of_share,
)


def least(values, count):
    """Indices of the least values; of equal ones the first."""
    return sorted(range(len(values)), key=lambda i: values[i])[:count]


def reference_magnitude(weight, sparsity):
    """Mask of the weights that stay, by loops."""
    rows, width = weight.shape
    mask = [[True] * width for _ in range(rows)]
    if sparsity == "2:4":
        for row in range(rows):
            for first in range(0, width, 4):
                for i in least([abs(weight[row, first + k].item()) for k in range(4)], 2):
                    mask[row][first + i] = False
        return torch.tensor(mask)
    values = [abs(x) for x in weight.flatten().tolist()]
    for i in least(values, round(sparsity * len(values) + 1e-9)):
        mask[i // width][i % width] = False
    return torch.tensor(mask)


def reference_wanda(weight, inputs, sparsity):
    """Mask of the weights that stay: |w| x norm of the input, row by row."""
    norms = [sum(x * x for x in column) ** 0.5 for column in inputs.T.tolist()]
    rows, width = weight.shape
    mask = [[True] * width for _ in range(rows)]
    for row in range(rows):
        scores = [abs(weight[row, i].item()) * norms[i] for i in range(width)]
        for first in range(0, width, 4 if sparsity == "2:4" else width):
            group = scores[first : first + 4] if sparsity == "2:4" else scores
            count = 2 if sparsity == "2:4" else round(sparsity * width + 1e-9)
            for i in least(group, count):
                mask[row][first + i] = False
    return torch.tensor(mask)


@pytest.mark.catches("two_of_four_are_outputs", "magnitude_is_by_row")
@pytest.mark.parametrize("sparsity", [0.5, 0.3, 0.9, "2:4"])
@settings(max_examples=20)
@given(rows=st.integers(1, 9), groups=st.integers(1, 6), seed=st.integers(0, 2**20))
def test_magnitude_equals_a_sort(sparsity, rows, groups, seed):
    dice = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 4 * groups, generator=dice)
    weight[0, :4] = 1.0  # equal ones
    expected = reference_magnitude(weight, sparsity)
    mask = magnitude_mask(weight, sparsity)
    assert torch.equal(mask, expected)
    if sparsity != "2:4":
        assert int((~mask).sum()) == zeros_of_share(sparsity, weight.numel())


@pytest.mark.catches("wanda_norms_are_of_outputs", "two_of_four_are_outputs")
@pytest.mark.parametrize("sparsity", [0.5, 0.3, "2:4"])
@pytest.mark.parametrize("rows", [16, 5])
def test_wanda_equals_a_sort_of_each_row(sparsity, rows):
    dice = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, 16, generator=dice)
    inputs = torch.randn(40, 16, generator=dice) * torch.rand(16, generator=dice).square() * 9
    moments = inputs.double().T @ inputs.double()
    mask = wanda_mask(weight, moments, sparsity)
    assert torch.equal(mask, reference_wanda(weight.double(), inputs.double(), sparsity))
    assert not torch.equal(mask, magnitude_mask(weight, sparsity))
