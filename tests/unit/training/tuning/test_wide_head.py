"""Fit of the wide head, against scikit-learn and plain Python."""

import io
import random
from collections import Counter

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from miniformer import MiniFormerDataModule, TrainConfig, Transformer, TransformerConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from miniformer.tasks.ordinal_regression import OrdinalRegression
from miniformer.tasks.regression import Regression
from miniformer.training.tuning.wide_head import (
    _features_and_labels,
    _Problem,
    _set_ngrams,
    count_ngrams,
    fit_wide_head,
    resolve_wide_head,
)

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
    """Texts that rain makes wet, in two of three cases, and their datamodule and model."""
    choose = random.Random(1)
    records = [
        {"input": text, "label": "wet" if ("rain" in text) == (choose.random() < 0.8) else "dry"}
        for text in texts(60)
    ]
    data = a_data(Classification(), records)
    size = len(count_ngrams(data, length=2, positions=False)[0])
    config = TransformerConfig(
        **SHAPE, vocab_size=data.tokenizer.vocab_size, output_dim=2, wide_size=size, wide_length=2
    )
    return records, data, Transformer(config)


@pytest.mark.catches("ngrams_of_one_text_are_kept", "repeated_ngrams_are_other_texts")
def test_count_ngrams_counts_texts(weather):
    _, data, _ = weather
    counts = Counter()
    for example in data.in_memory_examples("train"):
        ids = example["inputs"].tolist()
        counts.update({tuple(ids[i : i + n]) for n in (1, 2) for i in range(len(ids) - n + 1)})
    keys, actual = count_ngrams(data, length=2, positions=False)
    assert sorted(actual.tolist()) == sorted(count for count in counts.values() if count > 1)
    assert torch.equal(keys, keys.sort().values)


@pytest.mark.catches("the_penalty_grows_with_the_examples", "the_bias_is_not_fitted")
@pytest.mark.parametrize("strength", [1.0, 16.0])
def test_fit_equals_logistic_regression(weather, strength):
    _, data, model = weather
    _set_ngrams(model.wide_head, *count_ngrams(data, length=2, positions=False), 60)
    features, labels = _features_and_labels(model, data)
    head = model.wide_head
    start = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    weight, bias = _Problem(model, data.task, features, labels).solve(strength, start)
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=1000)
    # Two outputs share what one has there: each half of it, with half of the penalty.
    reference.C = strength * 2
    reference.fit(features.to_dense().numpy(), labels["labels"].numpy())
    difference = (weight[:, 1] - weight[:, 0]).numpy()
    np.testing.assert_allclose(difference, reference.coef_[0], atol=2e-2 * strength**0.5)
    np.testing.assert_allclose(float(bias[1] - bias[0]), reference.intercept_[0], atol=2e-2)


def test_fit_equals_ridge_regression():
    records = [{"input": text, "value": text.count("rain") - 0.5 * text.count("sun")}
               for text in texts(50)]  # fmt: skip
    data = a_data(Regression(), records)
    size = len(count_ngrams(data, length=1, positions=False)[0])
    config = TransformerConfig(
        **SHAPE, vocab_size=data.tokenizer.vocab_size, output_dim=1, wide_size=size, wide_length=1
    )
    model = Transformer(config)
    _set_ngrams(model.wide_head, *count_ngrams(data, length=1, positions=False), 50)
    features, labels = _features_and_labels(model, data)
    head = model.wide_head
    start = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    problem = _Problem(model, data.task, features, labels)
    weight, bias = problem.solve(4.0, start)
    loss = problem.loss(weight, bias)[0] / 50 + (weight**2).sum() / (2 * 4.0 * 50)
    x = np.hstack([features.to_dense().numpy(), np.ones((50, 1))]).astype(float)
    y = labels["labels"].double().numpy()  # in units of the standard deviation
    # The mean square has twice the curvature of half a square.
    penalty = np.diag([1 / (2 * 4.0)] * size + [0.0])
    solution = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    residual = x @ solution - y
    best = (residual**2).mean() + (solution[:-1] ** 2).sum() / (2 * 4.0 * 50)
    assert float(loss) == pytest.approx(best, rel=1e-3)


def test_fit_reports_its_held_out_metrics(weather):
    _, data, model = weather
    console = Console(file=io.StringIO(), width=200)
    fit_wide_head(model, data.task, data, console)
    line = console.file.getvalue()
    assert line.startswith(f"wide head: {len(model.wide_head.keys)} n-grams, fitted in ")
    assert "on a fifth of the training data, held out: loss " in line
    assert model.wide_head.mix.tolist() == [0.0, 1.0]


def test_head_with_room_for_fewer_ngrams_keeps_the_frequent_ones(weather):
    _, data, model = weather
    keys, counts = count_ngrams(data, length=2, positions=False)
    config = TransformerConfig(**{**model.config.to_dict(), "wide_size": 5})
    head = Transformer(config).wide_head
    _set_ngrams(head, keys, counts, 60)
    selected = sorted(counts[torch.isin(keys, head.keys)].tolist())
    assert selected == sorted(counts.tolist())[-5:]


@pytest.mark.catches("the_wide_head_reads_every_task")
def test_head_is_resolved_for_texts_with_one_output(weather):
    _, data, model = weather
    config = TransformerConfig(**{**model.config.to_dict(), "wide_size": None})
    setting, fields = resolve_wide_head(TrainConfig(train_path="x"), config, data)
    assert (setting.name, setting.value) == ("wide_head", "ngrams")
    assert fields["wide_length"] == 5  # the vocabulary is as small as an alphabet
    assert not fields["wide_positions"]
    for options in ({"wide_head": "none"}, {"init_from": "x"}, {"pretrain": {}}):
        assert resolve_wide_head(TrainConfig(train_path="x", **options), config, data) is None


def test_head_is_refused_without_validation(weather):
    records, data, model = weather
    config = TransformerConfig(**{**model.config.to_dict(), "wide_size": None})
    alone = MiniFormerDataModule(records, tokenizer=data.tokenizer, task=data.task, seq_len=16)
    alone.setup()
    assert resolve_wide_head(TrainConfig(train_path="x"), config, alone) is None
    with pytest.raises(UserError, match="wide_head=ngrams needs texts in memory, validation data"):
        resolve_wide_head(TrainConfig(train_path="x", wide_head="ngrams"), config, alone)


def test_ordered_outputs_have_no_wide_head():
    assert not OrdinalRegression.supports_wide_head
    assert Classification.supports_wide_head
    assert MultiLabelClassification.supports_wide_head
