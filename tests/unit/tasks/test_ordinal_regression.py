"""Ordinal regression: probabilities, thresholds and metrics against scikit-learn and plain code."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, mean_absolute_error

from miniformer.config import ConfigError, GenerationConfig, TransformerConfig, UserError
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.transformer import Transformer
from miniformer.tasks.ordinal_regression import (
    OrdinalRegression,
    class_log_probs,
    quadratic_kappa,
)
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
STARS = [{"input": "a" * (1 + n), "label": n % 4 + 1} for n in range(12)]


def fitted(records=STARS, **options):
    task = OrdinalRegression(**options)
    return task.fit(as_records(records, task.schema))


def model_for(task):
    return tiny_model(vocab_size=258, causal=False, **task.model_config({}, None))


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6), st.floats(-30, 30))
def test_class_log_probs_are_differences_of_sigmoids(thresholds, score):
    thresholds = np.cumsum(np.abs(thresholds) + 0.01) - 20
    logits = torch.tensor(score - thresholds)
    above = [1.0, *(1 / (1 + np.exp(-x)) for x in logits.tolist()), 0.0]
    log_probs = class_log_probs(logits)
    assert torch.isfinite(log_probs).all()
    for log_prob, high, low in zip(log_probs.tolist(), above, above[1:], strict=False):
        assert np.exp(log_prob) == pytest.approx(high - low, abs=1e-5)
    assert float(log_probs.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.catches("thresholds_may_cross")
def test_ordinal_probabilities_are_consistent_for_any_weights():
    """P(class > k) falls with k for each input, whatever the optimizer did to the thresholds."""
    for seed in range(20):
        model = tiny_model(seed, vocab_size=31, causal=False, output_dim=4, ordered_outputs=True)
        with torch.no_grad():
            model.head.bias.add_(5 * torch.randn(4))
        logits = model.classify(torch.randint(0, 31, (5, 7)))
        assert (logits.diff(dim=-1) < 0).all()
        assert torch.allclose(logits.diff(dim=-1), logits[:1].diff(dim=-1), atol=1e-5), "one score"


def test_ordinal_model_starts_with_equally_frequent_classes():
    config = TransformerConfig(
        vocab_size=31, d_model=16, n_heads=2, n_layers=1, output_dim=4, ordered_outputs=True
    )
    model = Transformer(config)
    probs = class_log_probs(-model.head.thresholds()[None].detach()).exp()
    assert probs[0].tolist() == pytest.approx([0.2] * 5, abs=1e-5)
    assert sum(p.numel() for p in model.parameters()) == config.num_params()
    assert model.head.weight.shape == (1, 16)


def test_ordinal_model_saves_its_thresholds(tmp_path):
    model = model_for(fitted())
    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    ids = torch.randint(0, 31, (2, 5))
    assert torch.equal(model.classify(ids), again.classify(ids))
    assert torch.equal(model.head.thresholds(), again.head.thresholds())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ordered_outputs": True}, "ordered_outputs=True needs output_dim"),
        (
            {"ordered_outputs": True, "output_dim": 3, "output_bias": False},
            "ordered_outputs has thresholds as its biases",
        ),
    ],
)
def test_ordered_outputs_reject_invalid_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**fields)


@pytest.mark.catches("kappa_weights_are_linear")
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=50))
def test_quadratic_kappa_matches_scikit_learn(pairs):
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    (actual,) = quadratic_kappa(np.ones((1, len(labels))), predictions, labels)
    if len(set(predictions) | set(labels)) < 2:
        assert actual == 0
        return
    expected = cohen_kappa_score(labels, predictions, weights="quadratic", labels=range(5))
    assert actual == pytest.approx(expected, abs=1e-9)
    copies = np.random.default_rng(0).integers(0, 3, (4, len(labels)))
    resampled = quadratic_kappa(copies, predictions, labels)
    for row, value in zip(copies, resampled, strict=True):
        p, y = np.repeat(predictions, row), np.repeat(labels, row)
        if len(set(p) | set(y)) > 1:
            expected = cohen_kappa_score(y, p, weights="quadratic", labels=range(5))
            assert value == pytest.approx(expected, abs=1e-9)


@pytest.mark.catches("ordinal_prediction_is_the_mode")
def test_ordinal_prediction_is_the_median_class():
    task = fitted()
    for probs, expected in (
        ([0.4, 0.15, 0.15, 0.3], 1),
        ([0.6, 0.1, 0.1, 0.2], 0),
        ([0, 0, 0, 1.0], 3),
    ):
        assert int(task.decide(torch.tensor(probs).clamp_min(1e-9).log())) == expected


def test_ordinal_metrics_match_scikit_learn():
    task = fitted()
    labels, predictions = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([0, 2, 2, 1, 1])
    stats = {"loss": 3.0, "count": 5.0, "labels": labels, "predictions": predictions}
    metrics = task.compute_metrics([stats])
    assert metrics["mae"] == pytest.approx(mean_absolute_error(labels, predictions))
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["kappa"] == pytest.approx(
        cohen_kappa_score(labels, predictions, weights="quadratic")
    )
    assert metrics["loss"] == pytest.approx(0.6)
    assert metrics.keys() == set(task.metrics)


def test_ordinal_loss_and_predictions_are_of_the_model_probabilities():
    task = fitted()
    model = model_for(task)
    examples = task.encode(STARS[:1], BYTES, 32)
    batch = task.collate_fn(BYTES, seq_len=32, training=False)(examples, None)
    loss, count = task.loss(model, batch)
    (answer,) = task.predict(model, BYTES, [STARS[0]["input"]], GenerationConfig())
    assert list(answer["scores"]) == [1, 2, 3, 4]
    assert float(loss.detach()) == pytest.approx(-np.log(answer["scores"][1]), rel=1e-4)
    assert int(count) == 1
    assert answer["score"] == answer["scores"][answer["label"]]
    assert sum(answer["scores"].values()) == pytest.approx(1.0)


def test_ordinal_classes_are_ascending_integers_or_given():
    assert fitted().classes == [1, 2, 3, 4]
    names = [{"input": "x", "label": name} for name in ("low", "high", "medium")]
    with pytest.raises(UserError, match="whose order is not known: 'high', 'low', 'medium'"):
        fitted(names)
    order = ["low", "medium", "high"]
    task = fitted(names, classes=order)
    assert task.classes == order
    assert [e["labels"] for e in task.encode(names, BYTES, 8)] == [0, 2, 1]


def test_ordinal_gradients_reach_score_and_thresholds():
    task = fitted(class_weights="balanced", label_smoothing=0.1)
    model = model_for(task).train()
    examples = task.encode(STARS, BYTES, 32)
    batch = task.collate_fn(BYTES, seq_len=32, training=True)(examples, None)
    task.loss(model, batch)[0].backward()
    assert model.head.bias.grad.abs().min() > 0
    assert model.head.weight.grad.abs().max() > 0
