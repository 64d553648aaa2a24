"""Activation checkpointing beside the gradients of the battery: randomness, and unknown ways."""

import pytest
import torch

from miniformer.config import UserError
from miniformer.model.stack import set_activation_checkpointing
from tests.kit import tiny_model


@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_is_computed_again_has_the_same_dropout(how):
    """Gradients of a network with dropout are right only if both passes drop the same elements."""
    model = tiny_model(dropout=0.5).train()
    inputs = torch.randint(0, 31, (2, 9))
    gradients = []
    for each in ("none", how):
        set_activation_checkpointing(model, each)
        model.zero_grad()
        torch.manual_seed(3)
        model(inputs).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_an_unknown_way_is_refused():
    with pytest.raises(UserError, match=r"unknown activation checkpointing 'ful' .*'full'"):
        set_activation_checkpointing(tiny_model(), "ful")
