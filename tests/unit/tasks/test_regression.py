"""Regression of several values: metrics against scikit-learn, standardization, errors."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from sklearn import metrics as reference

from miniformer.config import GenerationConfig, UserError
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.regression import Regression
from miniformer.training.tuning.validation_defaults import resolve_checkpoint_metric
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal([1000.0, 0.01, -5.0], [50.0, 0.002, 1.0], (12, 3))
LISTS = [{"input": "a" * (n + 1), "value": row.tolist()} for n, row in enumerate(VALUES)]
NAMES = ["price", "area", "depth"]
OBJECTS = [{**record, "value": dict(zip(NAMES, record["value"], strict=True))} for record in LISTS]


def fitted(records=LISTS, **options):
    task = Regression(**options)
    return task.fit(as_records(records, task.schema))


def model_for(task):
    return tiny_model(vocab_size=258, causal=False, **task.model_config({}, None))


def eval_stats(task, model, records):
    examples = task.encode(records, BYTES, 32)
    collate = task.collate_fn(BYTES, seq_len=32, training=False)
    with torch.no_grad():
        return [task.eval_step(model, collate(part, None)) for part in (examples[:5], examples[5:])]


@pytest.mark.parametrize("records", [LISTS, OBJECTS])
def test_regression_standardizes_each_output(records):
    task = fitted(records)
    assert (task.num_values, task.num_outputs()) == (3, 3)
    assert task.value_names == (None if records is LISTS else NAMES)
    assert task.target_mean == pytest.approx(VALUES.mean(0))
    assert task.target_std == pytest.approx(VALUES.std(0))
    labels = np.stack([example["labels"] for example in task.encode(records, BYTES, 32)])
    assert labels.mean(0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert labels.std(0) == pytest.approx(np.ones(3))


@pytest.mark.catches("outputs_are_in_the_order_of_the_record")
@pytest.mark.parametrize("records", [LISTS, OBJECTS])
def test_regression_of_several_values_predicts_them_in_their_format(records):
    task = fitted(records)
    model = model_for(task)
    (answer,) = task.predict(model, BYTES, ["aaa"], GenerationConfig())
    outputs = model.classify(torch.tensor([[BYTES.eos_id, *BYTES.encode("aaa")]]))[0].tolist()
    expected = VALUES.mean(0) + VALUES.std(0) * outputs
    if records is OBJECTS:
        assert list(answer) == NAMES
        answer = list(answer.values())
    assert answer == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.catches("metrics_are_of_the_first_output")
def test_regression_metrics_of_several_outputs_match_scikit_learn():
    task = fitted(OBJECTS)
    model = model_for(task)
    stats = eval_stats(task, model, OBJECTS)
    metrics = task.compute_metrics(stats)
    inputs = [record["input"] for record in OBJECTS]
    answers = task.predict(model, BYTES, inputs, GenerationConfig())
    predictions = np.array([list(answer.values()) for answer in answers])
    functions = {
        "rmse": reference.root_mean_squared_error,
        "mae": reference.mean_absolute_error,
        "r2": reference.r2_score,
        "pearson": lambda y, p: scipy_stats.pearsonr(y, p).statistic,
        "spearman": lambda y, p: scipy_stats.spearmanr(y, p).statistic,
    }
    for name, function in functions.items():
        single = [function(VALUES[:, n], predictions[:, n]) for n in range(3)]
        for output, value in zip(NAMES, single, strict=True):
            assert metrics[f"{name}_{output}"] == pytest.approx(value, rel=1e-4), name
        assert metrics[name] == pytest.approx(np.mean(single), rel=1e-4)
    loss = (((predictions - VALUES) / VALUES.std(0)) ** 2).mean()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert resolve_checkpoint_metric(task, None).value == "r2"
    assert resolve_checkpoint_metric(Regression(), None).value == "rmse"


def test_regression_loss_counts_each_number():
    task = fitted()
    model = model_for(task)
    examples = task.encode(LISTS, BYTES, 32)
    batch = task.collate_fn(BYTES, seq_len=32, training=True)(examples, None)
    loss, count = task.loss(model, batch)
    assert int(count) == 36
    expected = task.compute_metrics(eval_stats(task, model, LISTS))["loss"]
    assert float(loss.detach() / count) == pytest.approx(expected, rel=1e-4)


def test_regression_r2_of_one_value_matches_scikit_learn():
    records = [{**record, "value": record["value"][0]} for record in LISTS]
    task = fitted(records)
    assert task.num_values is None
    assert isinstance(task.target_mean, float)
    model = model_for(task)
    metrics = task.compute_metrics(eval_stats(task, model, records))
    answers = task.predict(model, BYTES, [r["input"] for r in records], GenerationConfig())
    assert metrics["r2"] == pytest.approx(reference.r2_score(VALUES[:, 0], answers), rel=1e-4)
    assert metrics.keys() == set(task.metrics)


@pytest.mark.catches("values_of_other_lengths_pass")
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("[1, 2]", "[1, 2, 3]", "'value' is a list of 3, where others are lists of 2"),
        ("[1, 2]", "3", "'value' is one number, where others are lists of 2"),
        ("1", "[1, 2]", "'value' is a list of 2, where others are one number"),
        ("[1, 2]", '[1, "x"]', "'value' has 2, which must be a finite number, not a string"),
        (
            '{"a": 1}',
            '{"b": 1}',
            "'value' has the keys 'b', where others are objects with the keys 'a'",
        ),
        ("[1]", "[]", "'value' is empty; it needs at least one number"),
    ],
)
def test_regression_rejects_values_of_another_kind_with_their_line(
    tmp_path, first, second, message
):
    path = tmp_path / "t.jsonl"
    lines = [f'{{"input": "x", "value": {value}}}' for value in (first, first, second)]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        fitted(str(path))
    assert str(caught.value).startswith(f"{path}:3: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_values": 2, "target_mean": [1.0]}, "target_mean has 1 numbers for num_values=2"),
        ({"target_std": [1.0, 0.0]}, "target_std must be above 0"),
        ({"value_names": ["a", "a"]}, "value_names must differ"),
        ({"value_names": ["a"], "num_values": 2}, "value_names has 1 names for num_values=2"),
    ],
)
def test_regression_options_of_several_values_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        Regression(**options)


def test_regression_rejects_constant_outputs_and_series_of_several_values():
    constant = [{**record, "value": [n, 3]} for n, record in enumerate(LISTS)]
    with pytest.raises(UserError, match="every value of output 2 is 3"):
        fitted(constant)
    vectors = [{"input": [[1.0], [2.0]], "value": [1.0, 2.0]}] * 2
    with pytest.raises(UserError, match="target_delta_of is for values that are one number"):
        fitted(vectors, target_delta_of=0)
