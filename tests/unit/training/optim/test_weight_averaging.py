"""Weight averages compared with their formulas."""

import contextlib
import types

import pytest
import torch
from torch import nn

from miniformer.training.callbacks.validation import WeightAveraging
from miniformer.training.optim.weight_averaging import CheckpointAverage, Ema


def weights_of(model):
    return model.weight.detach().clone()


def train(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        model.weight.copy_(torch.randn_like(model.weight))


def test_ema_matches_its_definition():
    model = nn.Linear(3, 2, bias=False)
    ema, expected = Ema(model, 0.6), weights_of(model)
    ema.state_tensors()
    for step in range(1, 12):
        train(model, step)
        ema.update()
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights_of(model)
        torch.testing.assert_close(ema.state_tensors()["weight"], expected)


def test_averages_are_swapped_in_temporarily():
    model = nn.Linear(3, 2)
    parameter = model.weight
    averaging = WeightAveraging(model, ema_decay=0.9)
    ema = averaging.ema
    ema.state_tensors()
    train(model, 1)
    ema.update()
    module = types.SimpleNamespace(set_optimizer_mode=lambda training: None)
    own, average = weights_of(model), ema.state_tensors()["weight"].clone()
    with contextlib.suppress(KeyError), averaging.use_averaged_weights(module):
        assert torch.equal(model.weight, average)
        assert model.weight is parameter
        raise KeyError
    assert torch.equal(model.weight, own)
    assert torch.equal(ema.state_tensors()["weight"], average)


def test_checkpoint_average_is_of_the_last_weights():
    model = nn.Linear(3, 2)
    last, seen = CheckpointAverage(model, 3), []
    for step in range(5):
        train(model, step)
        last.add()
        seen.append(weights_of(model))
    assert len(last) == 3
    torch.testing.assert_close(last.mean()["weight"], torch.stack(seen[2:]).mean(0))


@pytest.mark.parametrize("make", [lambda m: Ema(m, 0.9), lambda m: CheckpointAverage(m, 3)])
def test_averages_resume_from_their_state(make):
    model = nn.Linear(3, 2)
    average = make(model)
    advance = average.update if isinstance(average, Ema) else average.add
    for step in range(2):
        train(model, step)
        advance()
    resumed = make(model)
    resumed.set_extra_state(average.get_extra_state())
    for name, tensor in resumed.state_tensors().items():
        tensor.copy_(average.state_tensors()[name])
    train(model, 9)
    advance()
    (resumed.update if isinstance(resumed, Ema) else resumed.add)()
    assert average.get_extra_state() == resumed.get_extra_state()
    for name, tensor in average.state_tensors().items():
        assert torch.equal(tensor, resumed.state_tensors()[name])
