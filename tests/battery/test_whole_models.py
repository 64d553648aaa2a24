"""Copies, files, dropout and activation checkpointing of models.

These do not depend on pairs of options, so a few variants cover each value of each option.
"""

import copy

import pytest
import torch

from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.model.ops.activation_checkpointing import saved_activation_bytes
from miniformer.model.transformer import Transformer
from tests.battery.models import LAYOUTS, build, call, each_value, ids_of
from tests.kit import tiny_model


@each_value
@pytest.mark.parametrize("how", ["selective", "full"])
def test_checkpointed_layers_have_equal_gradients_and_save_less(row, how):
    model = build(row).train()
    segments = torch.tensor(LAYOUTS["left padding"])
    inputs = ids_of(model)
    gradients, saved_bytes = [], []
    for mode in ("none", how):
        set_activation_checkpointing(model, mode)
        saved_bytes.append(saved_activation_bytes(lambda: call(model, inputs, segments)))
        model.zero_grad()
        call(model, inputs, segments).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)
    assert saved_bytes[1] < saved_bytes[0]


@each_value
def test_saving_and_loading_changes_nothing(row, tmp_path):
    model = build(row)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["right padding"])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(call(loaded, inputs, segments), call(model, inputs, segments))


@each_value
def test_deep_copy_is_equal_and_independent(row):
    model = build(row)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["no padding"])
    before = call(model, inputs, segments)
    twin = copy.deepcopy(model)
    assert torch.equal(call(twin, inputs, segments), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(call(model, inputs, segments), before)


@each_value
def test_dropout_is_off_in_eval_and_on_in_training(row):
    model = build(row, dropout=0.5)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["no padding"])
    before = call(model, inputs, segments)
    assert torch.equal(call(model, inputs, segments), before)
    model.train()
    assert not torch.equal(call(model, inputs, segments), call(model, inputs, segments))


@pytest.mark.catches("tied_head_is_a_copy")
def test_tied_head_is_the_embedding_before_and_after_loading(tmp_path):
    model = tiny_model(tie_embeddings=True)
    model.save_pretrained(tmp_path)
    for candidate in (model, Transformer.from_pretrained(tmp_path), copy.deepcopy(model)):
        inputs = ids_of(candidate)
        with torch.no_grad():
            before = candidate(inputs)
            candidate.embedding.weight[5] *= 2
        absent = ~(inputs == 5).any(1)  # rows whose inputs do not have the changed token
        assert absent.any()
        torch.testing.assert_close(candidate(inputs)[absent][..., 5], 2 * before[absent][..., 5])
