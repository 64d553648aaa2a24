"""Thresholds and F1 of multi-label classification against scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_curve

from miniformer.tasks.common import thresholds

CASES = given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5))


def random_case(seed, count, num_labels):
    random = np.random.default_rng(seed)
    probs = random.random((count, num_labels)).round(int(random.integers(1, 4)))
    labels = random.random((count, num_labels)) < random.random(num_labels)
    return probs.astype(np.float32), labels


@pytest.mark.catches("best_threshold_is_a_half")
@CASES
def test_best_threshold_has_the_highest_f1_of_all(seed, count, num_labels):
    probs, labels = random_case(seed, count, num_labels)
    for p, true in zip(probs.T, labels.T, strict=True):
        if not true.any():
            continue
        best = thresholds.best_threshold(p, true)
        precision, recall, _ = precision_recall_curve(true, p)  # at each distinct value of p
        scores = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        assert f1_score(true, p >= best, zero_division=0) == pytest.approx(max(scores))
        assert 0 <= best <= 1


@pytest.mark.catches("f1_of_an_absent_label_is_one")
@CASES
def test_f1_matches_scikit_learn(seed, count, num_labels):
    probs, labels = random_case(seed, count, num_labels)
    predictions = probs >= 0.6
    for average in ("macro", "micro", "samples"):
        actual = getattr(thresholds, f"{average}_f1")(predictions, labels)
        empty_is = 1.0 if average == "samples" else 0.0
        if num_labels == 1:  # for scikit-learn, one column is a binary problem
            continue
        expected = f1_score(labels, predictions, average=average, zero_division=empty_is)
        assert actual == pytest.approx(expected), average


def test_best_common_threshold_has_the_highest_macro_f1_of_the_grid():
    probs, labels = random_case(0, 200, 4)
    best = thresholds.best_common_threshold(probs, labels)
    scores = {
        t / 100: f1_score(labels, probs >= t / 100, average="macro", zero_division=0)
        for t in range(1, 100)
    }
    assert scores[round(best, 2)] == pytest.approx(max(scores.values()))


@pytest.mark.catches("rare_labels_have_their_own_threshold")
def test_best_thresholds_of_rare_labels_are_common():
    random = np.random.default_rng(0)
    labels = np.zeros((100, 3), bool)
    for column, count in enumerate((40, thresholds.MIN_POSITIVES - 1, 0)):
        labels[:count, column] = True
    probs = np.clip(labels * 0.3 + random.random((100, 3)) * 0.4, 0, 1).astype(np.float32)
    tuned = thresholds.best_thresholds(probs, labels)
    common = thresholds.best_common_threshold(probs, labels)
    assert tuned[1] == tuned[2] == common
    own = thresholds.best_threshold(probs[:, 0], labels[:, 0])
    assert tuned[0] == pytest.approx(np.sqrt(own * common))
    assert min(own, common) < tuned[0] < max(own, common)
