"""Wide heads of series: choice of features, fit, a run from start to end."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console

import miniformer
from miniformer import MiniFormerDataModule, TrainConfig, TransformerConfig
from miniformer.tasks.classification import Classification
from miniformer.tasks.ordinal_regression import OrdinalRegression
from miniformer.training.tuning.wide_head.data import WideData
from miniformer.training.tuning.wide_head.fit import _fit_group, fit_wide_head, select_groups
from miniformer.training.tuning.wide_head.linear import LinearProblem
from miniformer.training.tuning.wide_head.matrix import FeatureMatrix
from miniformer.training.tuning.wide_head.series import propose_series

SHAPE = {"d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.0}


def rings(count, seed=0):
    """Points inside and outside of a circle: no linear model of the numbers separates them."""
    random = np.random.default_rng(seed)
    points = random.uniform(-1, 1, (count, 1, 2))
    radius = np.sqrt((points**2).sum((1, 2)))
    return [{"input": point.tolist(), "label": int(r > 0.75)}
            for point, r in zip(points, radius, strict=True)]  # fmt: skip


def a_data(records, task=None):
    data = MiniFormerDataModule(
        records, val_path=records[:10], tokenizer=None, task=task or Classification(), seq_len=64
    )
    data.setup()
    return data


def a_config(data, **fields):
    fields = {**data.task.model_config({}, None), **SHAPE, **fields}
    return TransformerConfig(**fields)


@pytest.fixture(scope="module")
def ring_data():
    return a_data(rings(300))


@pytest.mark.catches("the_first_group_is_taken", "weights_of_whitened_features_are_kept")
def test_a_nonlinear_model_is_chosen_where_a_linear_one_fails(ring_data):
    console = Console(file=io.StringIO(), width=300)
    config = a_config(ring_data)
    fitted = fit_wide_head(TrainConfig(train_path="x"), config, ring_data, console)
    assert fitted.groups[0]["type"] == "rbf"
    model = miniformer.Transformer(dataclasses.replace(config, wide_head=fitted.groups)).eval()
    model.wide_head.load_state_dict(fitted.state)
    test = rings(400, seed=1)
    inputs = torch.stack([torch.tensor(x["inputs"]) for x in ring_data.task.encode(test, None, 64)])
    labels = torch.tensor([record["label"] for record in test])
    assert float((model.classify(inputs).argmax(1) == labels).float().mean()) > 0.93


@pytest.mark.catches("short_series_have_kernels")
@pytest.mark.parametrize(
    ("lengths", "types"),
    [
        ([8] * 20, ["numbers", "statistics"]),
        ([1] * 20, ["numbers"]),
        ([12] * 20, ["numbers", "statistics", "kernels"]),
        ([12, 30] * 10, ["statistics", "kernels"]),
    ],
)
def test_groups_follow_from_the_lengths(lengths, types):
    records = [{"input": [[float(row + t)] for t in range(length)], "label": row % 2}
               for row, length in enumerate(lengths)]  # fmt: skip
    data = a_data(records)
    config = a_config(data)
    wide_data = WideData(config, data)
    groups = propose_series(config, wide_data)
    assert [group["type"] for group in groups] == types
    for group in groups:
        fitted = _fit_group(group, config, wide_data)
        assert fitted.block.shape == (20, group["size"])
        assert torch.isfinite(fitted.block).all()


@pytest.mark.catches("labels_are_in_another_order")
def test_labels_have_the_order_of_the_features():
    records = [{"input": [[float(row)]] * (1 + row % 7), "label": row % 5} for row in range(35)]
    data = a_data(records, Classification(standardize=False))
    wide_data = WideData(a_config(data), data)
    numbers = torch.cat([inputs["inputs"][:, 0, 0] for inputs in wide_data.inputs()])
    assert torch.equal(numbers.long() % 5, wide_data.labels()["labels"])


def test_thresholds_of_kernels_are_quantiles_of_the_convolutions():
    random = np.random.default_rng(0)
    records = [
        {"input": random.normal(size=(40, 1)).tolist(), "label": row % 2} for row in range(30)
    ]
    data = a_data(records)
    config = a_config(data)
    group = {"type": "kernels", "size": 84 * 2 * 3, "width": 1, "dilations": 2}
    fitted = _fit_group(group, config, WideData(config, data))
    fractions = (fitted.block / fitted.module.scales + fitted.module.means).nanmean(0)
    # Thresholds at the quantiles q have shares of 1 - q, evenly spread.
    fractions = fractions[torch.isfinite(fractions)].sort().values
    np.testing.assert_allclose(fractions, np.linspace(0, 1, len(fractions)), atol=0.05)


@pytest.mark.catches("thresholds_of_the_wide_head_may_ascend")
def test_ordered_outputs_stay_descending():
    records = [{"input": [[row / 30]], "label": row // 20} for row in range(60)]
    data = a_data(records, OrdinalRegression())
    config = a_config(data)
    wide_data = WideData(config, data)
    group = _fit_group({"type": "numbers", "size": 1}, config, wide_data)
    problem = LinearProblem(config, data.task, FeatureMatrix([group.block]), wide_data.labels())
    weight, bias = problem.solve(256.0, problem.zeros())
    assert weight.shape == (1, 1)
    assert (bias.diff() < 0).all()
    assert problem.metrics((weight, bias))["accuracy"] > 0.9


def test_few_examples_take_all_groups():
    data = a_data(rings(12))
    config = a_config(data)
    wide_data = WideData(config, data)
    groups = [_fit_group(group, config, wide_data) for group in propose_series(config, wide_data)]
    assert select_groups(groups, config, data.task, wide_data.labels()) == (groups, None)


def test_run_with_a_series_head_predicts_from_its_folder(tmp_path):
    val = rings(60, seed=2)
    options = {"task": "classification", "max_epochs": 2, "precision": "float32", "logger": "none"}
    result = miniformer.train(
        rings(200), val=val, work_dir=str(tmp_path), model_config=SHAPE, **options
    )
    metrics = result.metrics
    pipeline = miniformer.load(result.model)
    predicted = [row["label"] for row in pipeline.predict([record["input"] for record in val])]
    accuracy = np.mean([p == r["label"] for p, r in zip(predicted, val, strict=True)])
    assert accuracy == pytest.approx(metrics["val_accuracy"])
    assert accuracy > 0.85
