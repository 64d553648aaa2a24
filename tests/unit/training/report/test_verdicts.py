"""Verdicts on runs, from synthetic curves."""

import math
import random
import types

import pytest

from miniformer.training.report.verdicts import class_verdicts, data_verdicts, find_verdicts


def curves(train, val, metric=None, steps=1000, validations=10, noise=0.0):
    """Rows of functions of the progress in [0, 1]."""
    rng = random.Random(0)
    rows = []
    for step in range(10, steps + 1, 10):
        rows.append({"step": step, "train_loss": train(step / steps) + rng.gauss(0, noise)})
        if step % (steps // validations) == 0:
            rows.append({"step": step, "val_loss": val(step / steps) + rng.gauss(0, noise)})
            if metric is not None:
                rows[-1]["val_accuracy"] = metric(step / steps)
    return rows


def falling(x):
    return 2 * math.exp(-5 * x)


def flat_end(x):
    return 0.6 + math.exp(-12 * x)


def turning(x):
    return 0.6 + 4 * (x - 0.3) ** 2


CURVES = {
    "overfitting": (curves(falling, turning), {}, "overfitting"),
    "overfitting with noise": (curves(falling, turning, noise=0.02), {}, "overfitting"),
    "stopped early": (
        [*curves(falling, turning), {"step": 1001, "train_loss": 0.1, "val_loss": 0.1}],
        {"stop_step": 1000}, "overfitting",
    ),
    "better accuracy": (
        curves(falling, turning, lambda x: x), {"metric": "accuracy", "maximize": True},
        "overconfidence",
    ),
    "worse accuracy": (
        curves(falling, turning, lambda x: 1 - abs(x - 0.3)),
        {"metric": "accuracy", "maximize": True}, "overfitting",
    ),
    "a rise of a few thousandths": (
        curves(falling, lambda x: 0.005 + 0.01 * (x - 0.3) ** 2), {}, None,
    ),
    "rising validation without a falling training loss": (
        curves(lambda x: 1 + math.exp(-20 * x), turning), {}, None,
    ),
    "healthy": (curves(flat_end, lambda x: flat_end(x) + 0.1), {}, None),
    "healthy with noise": (curves(flat_end, flat_end, noise=0.005), {}, None),
    "still falling": (
        curves(falling, lambda x: falling(x) + 0.1), {"max_epochs": 10}, "underfitting",
    ),
    "still falling, and every prediction is right": (
        curves(falling, lambda x: falling(x) + 0.1, lambda x: float(x > 0.5)),
        {"metric": "accuracy", "maximize": True}, None,
    ),
    "still falling, and some predictions are wrong": (
        curves(falling, lambda x: falling(x) + 0.1, lambda x: 0.9 * x),
        {"metric": "accuracy", "maximize": True}, "underfitting",
    ),
    "interrupted": (curves(falling, falling), {"interrupted": True}, None),
    "no learning": (curves(lambda x: 1.0, lambda x: 1.0), {}, "no_learning"),
    "few validations": (curves(falling, turning, validations=2), {}, None),
    "nothing": ([], {}, None),
    "NaN": ([{"step": 1, "train_loss": math.nan, "val_loss": math.inf}] * 9, {}, None),
}  # fmt: skip


@pytest.mark.catches("no_run_overfits")
@pytest.mark.catches("early_stopping_hides_the_verdict")
@pytest.mark.catches("perfect_runs_are_to_be_longer")
@pytest.mark.parametrize("case", CURVES)
def test_verdict_follows_from_the_curves(case):
    rows, options, kind = CURVES[case]
    assert [verdict.kind for verdict in find_verdicts(rows, **options)] == ([kind] if kind else [])


def test_overfitting_names_steps_and_losses():
    (verdict,) = find_verdicts(curves(falling, turning))
    assert "validation loss rises since step 300 (0.6 -> 2.56) while training loss falls (0.4" in (
        verdict.text
    )
    assert "the best model is from step 300" in verdict.text


@pytest.mark.catches("first_of_equal_metrics_is_the_best")
def test_overfitting_names_the_step_of_the_best_model_among_equal_metrics():
    """Of equal accuracies, the best model is that of the lowest validation loss."""
    options = {"metric": "accuracy", "maximize": True}
    (verdict,) = find_verdicts(curves(falling, turning, lambda x: 0.9), **options)
    assert "the best model is from step 300" in verdict.text
    (verdict,) = find_verdicts(
        curves(falling, turning, lambda x: 0.9 - (0.2 < x < 0.45)), **options
    )
    assert "the best model is from step 200" in verdict.text


def test_overfitting_names_a_best_model_of_the_cooldown():
    annealed = {"step": 1100, "train_loss": 0.1, "val_loss": 0.5}
    (verdict,) = find_verdicts([*curves(falling, turning), annealed], stop_step=1000)
    assert "rises since step 300" in verdict.text
    assert "the best model is from step 1,100" in verdict.text


def test_underfitting_suggests_twice_the_epochs():
    (verdict,) = find_verdicts(curves(falling, falling), max_epochs=10)
    assert "try --max_epochs 20 or a longer --max_time" in verdict.text


@pytest.mark.catches("advice_is_a_budget_that_the_run_lacks")
def test_underfitting_suggests_the_budget_of_the_run():
    (verdict,) = find_verdicts(curves(falling, falling), max_steps=80)
    assert verdict.text.endswith("; try --max_steps 160")
    (verdict,) = find_verdicts(curves(falling, falling))
    assert verdict.text.endswith("; try a longer --max_time")


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        ({"padding": 0.4}, ["padding"]), ({"padding": 0.2}, []),
        ({"num_cut": 20, "num_examples": 100, "max_seq_len": 64}, ["truncation"]),
        ({"num_cut": 1, "num_examples": 1000, "max_seq_len": 64}, []),
    ],
)  # fmt: skip
def test_verdicts_on_batches(facts, kinds):
    verdicts = list(data_verdicts(**facts))
    assert [verdict.kind for verdict in verdicts] == kinds
    assert all(("40%" if kinds == ["padding"] else "128") in verdict.text for verdict in verdicts)


def test_verdicts_on_classes():
    table = [("a", 10, 12), ("b", 3, 0), ("c", 0, 1), ("d", 0, 0)]
    classes = [types.SimpleNamespace(name=n, support=s, predicted=p) for n, s, p in table]
    never, missing = class_verdicts(classes, "validation")
    assert "never predicted on the validation data: b (3 records)" in never.text
    assert "class_weights" not in never.text
    weighted = next(class_verdicts(classes, "validation", has_weights=True))
    assert "--task_config.class_weights balanced" in weighted.text
    assert "no validation examples: c, d;" in missing.text
    assert list(class_verdicts(classes[:1], "test")) == []
