"""An optimizer's state through the files of a checkpoint."""

import copy
import json

import pytest
import torch

from miniformer import registry
from miniformer.training.resume.optimizer_state import allocate_optimizer_state, optimizer_state
from tests.kit import tiny_model


def with_gradients(model, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if seed < 2:  # no gradient so far, hence no state
        model.layers[0].attention.q_proj.weight.grad = None


def make(name, model):
    optimizer = registry.get("optimizer", name)(model, lr=0.01, weight_decay=0.1)
    getattr(optimizer, "train", lambda: None)()
    return optimizer


@pytest.mark.catches("a_resumed_optimizer_has_the_values_of_its_start")
@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_optimizer_state_resumes_bit_exactly(name):
    model = tiny_model()
    optimizer = make(name, model)
    for seed in range(2):
        with_gradients(model, seed)
        optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] *= 2.0  # as a schedule does
    tensors, metadata = optimizer_state(model, optimizer)
    resumed = copy.deepcopy(model)
    resumed_optimizer = make(name, resumed)
    empty = allocate_optimizer_state(resumed, resumed_optimizer, json.loads(json.dumps(metadata)))
    assert empty.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert empty[key].dtype == tensor.dtype
        empty[key].copy_(tensor)
    for trained, its_optimizer in ((model, optimizer), (resumed, resumed_optimizer)):
        with_gradients(trained, 7)
        its_optimizer.step()
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))
