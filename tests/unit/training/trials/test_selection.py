"""Comparison of trials: noise, ties, and the better half."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

from miniformer.tasks.classification import Classification
from miniformer.tasks.common.record_results import RecordResults, confusion_matrix
from miniformer.training.trials.candidates import Candidate
from miniformer.training.trials.selection import Difference, compare, halve, select
from miniformer.training.trials.trial import TrialResult

N = 400
TASK = Classification(classes=["a", "b"], input_kind="text")


def make_trial(name, losses, correct=None):
    """A trial with the losses, and the given answers of a classifier with true class 0."""
    losses = np.asarray(losses, float)
    n = len(losses)
    metric, predictions = None, np.zeros(n, int)
    if correct is not None:
        predictions = 1 - np.asarray(correct, int)
        metric = accuracy_score(np.zeros(n, int), predictions)
    scores = np.eye(2)[predictions]
    results = RecordResults(
        np.arange(n), predictions.tolist(), [0] * n, losses, np.ones(n), predictions == 0,
        classes=["a", "b"], class_scores=scores,
        confusion=confusion_matrix(np.zeros(n, int), predictions, 2),
        statistics={"truths": np.zeros(n, int), "predictions": predictions},
    )  # fmt: skip
    candidate = Candidate({"tokenizer": name})
    return TrialResult(candidate, 10, losses, float(losses.mean()), metric, results, TASK)


def test_compare_has_the_paired_standard_error_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 1.0, N), rng.normal(1.1, 1.0, N)
    difference = compare(make_trial("x", first), make_trial("y", second), "loss")
    expected = stats.ttest_rel(second, first).statistic
    assert difference.loss / difference.loss_error == pytest.approx(expected)


@pytest.mark.catches("noise_decides_trials")
def test_select_retains_the_defaults_within_the_noise():
    rng = np.random.default_rng(0)
    losses = rng.normal(1.0, 1.0, N)
    noise = rng.normal(0.0, 0.5, N)
    noise -= noise.mean()
    default = make_trial("default", losses)
    slightly, clearly = make_trial("x", losses + noise - 0.01), make_trial("y", losses + noise - 1)
    assert select([default, slightly], "loss") is default
    assert select([default, slightly, clearly], "loss") is clearly


@pytest.mark.parametrize(
    ("metric", "loss", "better"),
    [(3.0, 0.0, True), (3.0, -5.0, False), (-3.0, 5.0, False), (0.5, 5.0, True), (0.5, 1.0, False)],
)
def test_metric_decides_and_the_loss_decides_ties(metric, loss, better):
    """Both in standard errors."""
    assert Difference(loss, 1.0, metric, 1.0).is_better is better


def test_halve_retains_the_defaults_and_the_better_half():
    trials = [make_trial(str(loss), [loss] * 3) for loss in (5.0, 3.0, 1.0, 2.0, 4.0)]
    assert halve(trials, "loss") == [trials[0], trials[2], trials[3]]
    assert halve(trials[:2], "loss") == trials[:2]


def test_select_uses_a_metric_of_any_direction():
    wrong, right = [True] * 300 + [False] * 100, [True] * 390 + [False] * 10
    default = make_trial("default", np.ones(N), wrong)
    better = make_trial("x", np.ones(N), right)
    difference = compare(better, default, "accuracy")
    assert difference.metric == pytest.approx(90 / 400)
    changed = np.array(right) != np.array(wrong)
    assert difference.metric_error == pytest.approx(changed.std() / np.sqrt(N), rel=0.2)
    assert select([default, better], "accuracy") is better
    assert select([better, default], "accuracy") is better
