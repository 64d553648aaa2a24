"""Matrices with masks: weights, state of the optimizer, averages."""

import pytest
import torch
from torch import nn

from miniformer import UserError
from miniformer.compression.sparse_training.matrices import largest, sparse_matrices
from miniformer.model.transformer import Transformer
from tests.kit import tiny_config


class Experts(nn.Module):
    """A parameter of two stacked matrices, in a layer."""

    matrix_names = ("up",)

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.arange(1.0, 25.0).view(2, 3, 4))


class Model(nn.Module):
    """A layer, and a matrix outside of the layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Experts()])
        self.head = nn.Linear(3, 3)


@pytest.mark.catches("grown_weights_keep_old_moments", "averages_keep_dropped_weights")
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_set_mask_clears_what_belongs_to_other_weights(kind):
    model = Model()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    model.layers[0].up.square().sum().backward()
    optimizer.step()
    first, second = sparse_matrices(model)
    assert (first.name, second.name) == ("layers.0.up.0", "layers.0.up.1")
    names = [name for name, x in optimizer.state[first.parameter].items() if x.dim() == 3]
    before = {name: optimizer.state[first.parameter][name].clone() for name in names}
    weights = first.parameter.detach().clone()
    averages = {"ema.layers.0.up": torch.ones(2, 3, 4), "ema.more.up": torch.ones(2, 3, 4)}
    old = torch.arange(12).view(3, 4) % 3 != 0
    new = torch.arange(12).view(3, 4) % 4 != 0
    second.set_mask(old, optimizer, {})
    second.set_mask(new, optimizer, averages)
    for row in range(3):
        for column in range(4):
            was, stays = bool(old[row, column]), bool(new[row, column])
            spot = (1, row, column)
            expected = weights[spot] if was and stays else 0.0
            assert first.parameter[spot] == expected
            for name in names:
                state = optimizer.state[first.parameter][name][spot]
                assert state == (before[name][spot] if was and stays else 0.0)
            assert averages["ema.layers.0.up"][spot] == float(stays)
    assert torch.equal(first.parameter[0], weights[0])
    assert averages["ema.layers.0.up"][0].all()
    assert averages["ema.more.up"].all()
    assert names


def test_matrices_are_those_of_the_layers():
    model = Transformer(tiny_config(n_layers=2))
    model.layers[0].attention.q_proj.weight.requires_grad_(False)
    names = [matrix.name for matrix in sparse_matrices(model)]
    expected = {
        name.removesuffix(".weight")
        for name, x in model.named_parameters()
        if name.startswith("layers.") and x.dim() == 2
    }
    assert {*names} == expected - {"layers.0.attention.q_proj"}
    with pytest.raises(UserError, match="the layers of the model have no trained matrix"):
        sparse_matrices(nn.Linear(2, 2))


def test_the_first_of_equal_values_are_the_largest():
    values = torch.tensor([[1.0, 3.0], [3.0, 3.0]])
    assert largest(values, 2).tolist() == [[False, True], [True, False]]
    assert not largest(values, 0).any()
