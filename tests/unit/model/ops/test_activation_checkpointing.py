"""Activation checkpointing: dropout, saved bytes and unknown modes."""

import pytest
import torch

from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.model.ops.activation_checkpointing import saved_activation_bytes
from tests.kit import tiny_model


@pytest.mark.catches("recomputed_layers_draw_other_dropout")
@pytest.mark.parametrize("how", ["selective", "full"])
def test_checkpointed_layers_repeat_their_dropout(how):
    """Gradients of a network with dropout are right only if both passes drop the same elements."""
    model = tiny_model(dropout=0.5).train()
    inputs = torch.randint(0, 31, (2, 9))
    gradients = []
    for mode in ("none", how):
        set_activation_checkpointing(model, mode)
        model.zero_grad()
        torch.manual_seed(3)
        model(inputs).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


def test_saved_activation_bytes():
    """A chain of exp saves each output; a detached tensor saves nothing."""
    x = torch.zeros(10, 100, requires_grad=True)
    assert saved_activation_bytes(lambda: x.exp().exp().exp()) == 3 * 4000
    assert saved_activation_bytes(lambda: x.exp().detach().sum()) == 4
    assert saved_activation_bytes(lambda: (x.exp() + 1).sum()) == 4000 + 4  # adding keeps nothing


def test_checkpointing_modes_are_ordered_by_saved_bytes():
    model = tiny_model(d_model=64, n_layers=4).train()
    inputs = torch.randint(0, 31, (4, 32))
    saved_bytes = []
    for how in ("none", "selective", "full"):
        set_activation_checkpointing(model, how)
        saved_bytes.append(saved_activation_bytes(lambda: model(inputs)))
    inner, products, inputs_only = saved_bytes
    matrix_products = 4 * 4 * 32 * 4 * (4 * 64 + 256 + 64)  # layers, rows, tokens, bytes, widths
    assert inner > products > matrix_products > inputs_only
