"""Fit of the wide head, against scikit-learn and plain Python."""

import io
import random
from collections import Counter

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from miniformer import MiniFormerDataModule, TrainConfig, TransformerConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.regression import Regression
from miniformer.training.tuning.wide_head.data import WideData
from miniformer.training.tuning.wide_head.fit import fit_wide_head
from miniformer.training.tuning.wide_head.linear import LinearProblem
from miniformer.training.tuning.wide_head.matrix import FeatureMatrix, compute_block
from miniformer.training.tuning.wide_head.ngrams import count_ngrams, fit_ngrams

WORDS = ["sun", "rain", "snow", "hail", "fog", "wind", "calm", "storm"]
SHAPE = {"d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.0}


def texts(count, seed=0):
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(2, 6))) for _ in range(count)]


def a_data(task, records):
    tokenizer = Tokenizer.train("word", [record["input"] for record in records])
    data = MiniFormerDataModule(
        records, val_path=records[:10], tokenizer=tokenizer, task=task, seq_len=16
    )
    data.setup()
    return data


@pytest.fixture(scope="module")
def weather():
    """Texts that rain makes wet, in two of three cases, their datamodule and a config."""
    choose = random.Random(1)
    records = [
        {"input": text, "label": "wet" if ("rain" in text) == (choose.random() < 0.8) else "dry"}
        for text in texts(60)
    ]
    data = a_data(Classification(), records)
    return records, data, a_config(data, 2)


def a_config(data, outputs, **fields):
    return TransformerConfig(
        **SHAPE, vocab_size=data.tokenizer.vocab_size, output_dim=outputs, **fields
    )


def a_problem(data, config, length):
    """Problem of the n-grams of up to `length` words, and its features, dense."""
    wide_data = WideData(config, data)
    group = {"type": "ngrams", "length": length, "positions": False}
    block = compute_block(fit_ngrams(group, config, wide_data), wide_data.inputs())
    problem = LinearProblem(config, data.task, FeatureMatrix([block]), wide_data.labels())
    return problem, block.to_dense().numpy()


def fit(options, config, data, width=300):
    console = Console(file=io.StringIO(), width=width)
    fitted = fit_wide_head(TrainConfig(train_path="x", **options), config, data, console)
    return fitted, console.file.getvalue()


@pytest.mark.catches("ngrams_of_one_text_are_kept", "repeated_ngrams_are_other_texts")
def test_count_ngrams_counts_texts(weather):
    _, data, config = weather
    counts = Counter()
    for example in data.in_memory_examples("train"):
        ids = example["inputs"].tolist()
        counts.update({tuple(ids[i : i + n]) for n in (1, 2) for i in range(len(ids) - n + 1)})
    keys, actual = count_ngrams(WideData(config, data), length=2, positions=False)
    assert sorted(actual.tolist()) == sorted(count for count in counts.values() if count > 1)
    assert torch.equal(keys, keys.sort().values)


@pytest.mark.catches("the_penalty_grows_with_the_examples", "the_bias_is_not_fitted")
@pytest.mark.parametrize("strength", [1.0, 16.0])
def test_fit_equals_logistic_regression(weather, strength):
    _, data, config = weather
    problem, features = a_problem(data, config, 2)
    weight, bias = problem.solve(strength, problem.zeros())
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=1000)
    # Two outputs share what one has there: each half of it, with half of the penalty.
    reference.C = strength * 2
    reference.fit(features, problem.labels["labels"].numpy())
    difference = (weight[:, 1] - weight[:, 0]).numpy()
    np.testing.assert_allclose(difference, reference.coef_[0], atol=2e-2 * strength**0.5)
    np.testing.assert_allclose(float(bias[1] - bias[0]), reference.intercept_[0], atol=2e-2)


def test_fit_equals_ridge_regression():
    records = [{"input": text, "value": text.count("rain") - 0.5 * text.count("sun")}
               for text in texts(50)]  # fmt: skip
    data = a_data(Regression(), records)
    problem, features = a_problem(data, a_config(data, 1), 1)
    weight, bias = problem.solve(4.0, problem.zeros())
    size = features.shape[1]
    loss = problem.loss((weight, bias))[0] / 50 + (weight**2).sum() / (2 * 4.0 * 50)
    x = np.hstack([features, np.ones((50, 1))]).astype(float)
    y = problem.labels["labels"].double().numpy()  # in units of the standard deviation
    # The mean square has twice the curvature of half a square.
    penalty = np.diag([1 / (2 * 4.0)] * size + [0.0])
    solution = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    residual = x @ solution - y
    best = (residual**2).mean() + (solution[:-1] ** 2).sum() / (2 * 4.0 * 50)
    assert float(loss) == pytest.approx(best, rel=1e-3)


def test_fit_reports_its_held_out_metrics(weather):
    _, data, config = weather
    fitted, line = fit({}, config, data)
    (group,) = fitted.groups
    assert line.startswith(f"wide head: {group['size']} ngrams, fitted in ")
    assert "on a fifth of the training data, held out: loss " in line
    assert fitted.state["mix"].tolist() == [0.0, 1.0]


def test_given_group_with_room_for_fewer_ngrams_keeps_the_frequent_ones(weather):
    _, data, config = weather
    keys, counts = count_ngrams(WideData(config, data), length=2, positions=False)
    group = {"type": "ngrams", "size": 5, "length": 2}
    config = TransformerConfig(**{**config.to_dict(), "wide_head": [group]})
    fitted, _ = fit({}, config, data)
    assert fitted.groups == [group]
    selected = sorted(counts[torch.isin(keys, fitted.state["groups.0.keys"])].tolist())
    assert selected == sorted(counts.tolist())[-5:]


@pytest.mark.catches("the_wide_head_reads_every_task")
def test_head_is_resolved_for_texts_with_one_output(weather):
    _, data, config = weather
    fitted, _ = fit({}, config, data)
    assert (fitted.setting.name, fitted.setting.value) == ("wide_head", "on")
    (group,) = fitted.groups
    # The vocabulary is as small as an alphabet.
    assert (group["type"], group["length"], group["positions"]) == ("ngrams", 5, False)
    for options in ({"wide_head": "off"}, {"init_from": "x"}, {"pretrain": {}}):
        assert fit(options, config, data)[0] is None


def test_head_is_refused_without_validation(weather):
    records, data, config = weather
    alone = MiniFormerDataModule(records, tokenizer=data.tokenizer, task=data.task, seq_len=16)
    alone.setup()
    assert fit({}, config, alone)[0] is None
    with pytest.raises(UserError, match="wide_head=on needs training data in memory, validation"):
        fit({"wide_head": "on"}, config, alone)


@pytest.mark.catches("kernels_of_positions_are_left_out")
def test_a_kernel_of_tokens_at_positions_is_chosen_for_pairs_of_positions():
    """The label says whether two tokens that no n-gram covers are equal."""
    choose = random.Random(0)
    records = []
    for _ in range(600):
        tokens = choose.choices(WORDS[:3], k=7)
        records.append({"input": " ".join(tokens), "label": str(tokens[0] == tokens[5])})
    data = a_data(Classification(), records)
    console = Console(file=io.StringIO(), width=300)
    fitted = fit_wide_head(TrainConfig(train_path="x"), a_config(data, 2), data, console)
    kernel = fitted.groups[0]
    assert kernel["type"] == "rbf"
    assert kernel["of"] == {"type": "ngrams", "length": 1, "positions": True,
                            "size": kernel["of"]["size"]}  # fmt: skip
    accuracy = console.file.getvalue().split("accuracy ")[1].split(",")[0]
    assert float(accuracy) > 0.9
