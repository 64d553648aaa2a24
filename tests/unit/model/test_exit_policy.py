"""Early exit of classifiers: outputs are those of shorter models, for the rows that leave there."""

import pytest
import torch

from miniformer.model.exit_policy import ExitPolicy, exit_outputs
from tests.kit import tiny_model

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
IDS = torch.arange(20).view(4, 5)
SHAPES = {
    "mean": {"pooling": "mean"},
    "first": {"pooling": "first", "position": "learned"},
    "causal": {"pooling": "last", "causal": True},
    "post": {"pooling": "mean", "pre_norm": False},
    "types": {"pooling": "mean", "token_types": 2},
}


def classifier(shape, n_layers=3):
    """A model with random weights that are large enough for different confidences."""
    options = {"causal": False, "output_dim": 3, **SHAPES[shape]}
    model = tiny_model(n_layers=3, **options)
    shorter = tiny_model(n_layers=n_layers, **options)
    weights = model.state_dict()
    shorter.load_state_dict({name: weights[name] for name in shorter.state_dict()})
    with torch.no_grad():
        shorter.head.weight.mul_(20)
    return shorter


@pytest.mark.catches("padding_returns_after_an_exit", "exit_pools_without_the_norm")
@pytest.mark.parametrize("shape", SHAPES)
def test_exits_are_shorter_models(shape):
    model = classifier(shape)
    types = (IDS % 2) if shape == "types" else None
    with torch.inference_mode():
        outputs = exit_outputs(model, IDS, MASK, types)
        expected = [classifier(shape, n).classify(IDS, MASK, token_types=types) for n in (1, 2, 3)]
    torch.testing.assert_close(outputs, torch.stack(expected))


@pytest.mark.catches("unsure_records_leave", "rows_that_leave_are_mixed_up")
@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_leaves_at_its_first_confident_exit(shape):
    model = classifier(shape)
    with torch.inference_mode():
        outputs = exit_outputs(model, IDS, MASK)
        confidences = outputs.softmax(-1).amax(-1)
        middle = float(confidences[0].sort().values[2])  # two rows leave after one layer
        for threshold in (0.0, middle, 2.0):
            policy = ExitPolicy(threshold)
            model.exit_policy = policy
            result = model.classify(IDS, MASK)
            depths = [
                next((n for n in range(2) if confidences[n, row] >= threshold), 2)
                for row in range(4)
            ]
            expected = torch.stack([outputs[depth, row] for row, depth in enumerate(depths)])
            torch.testing.assert_close(result, expected)
            assert (policy.num_records, policy.num_layers) == (4, sum(depths) + 4)
    assert len(set(depths)) == 1
    assert "layers on average for 4 records" in str(policy)


def test_rows_that_left_take_no_part_in_later_layers():
    model = classifier("mean")
    sizes = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    with torch.inference_mode():
        first = exit_outputs(model, IDS, MASK)[0].softmax(-1).amax(-1)
        sizes.clear()
        model.exit_policy = ExitPolicy(float(first.max()))
        model.classify(IDS, MASK)
    assert sizes[:2] == [4, int((first < first.max()).sum())]
    assert sizes[1] < 4


def test_training_has_no_exits():
    model = classifier("mean").train()
    model.exit_policy = ExitPolicy(0.0)
    assert model.classify(IDS, MASK).shape == (4, 3)
    assert model.exit_policy.num_records == 0
