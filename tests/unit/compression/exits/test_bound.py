"""The bound of early exits: exact probabilities, and simulated draws of calibration records."""

import numpy as np
import pytest
import scipy.stats

from miniformer.compression.exits.bound import (
    THRESHOLDS,
    binomial_p_value,
    choose_threshold,
    count_losses,
    exit_layers,
    min_records,
)


@pytest.mark.parametrize(
    ("losses", "records", "limit"), [(0, 10, 0.1), (3, 400, 0.01), (40, 2000, 0.03), (5, 5, 0.2)]
)
def test_p_value_is_that_of_scipy(losses, records, limit):
    expected = scipy.stats.binom.cdf(losses, records, limit)
    assert binomial_p_value(losses, records, limit) == pytest.approx(expected, rel=1e-9)


def test_fewest_records():
    assert min_records(0.01, 0.95) == 299
    assert choose_threshold([0], 299, 0.01, 0.95) == 0
    assert choose_threshold([0], 298, 0.01, 0.95) == -1
    assert min_records(0.5, 0.5) == 1


@pytest.mark.catches("tests_go_on_after_a_failure")
def test_thresholds_after_the_first_failure_are_not_tested():
    assert choose_threshold([0, 2, 900, 0], 1000, 0.01, 0.95) == 1
    assert choose_threshold([900, 0], 1000, 0.01, 0.95) == -1


@pytest.mark.catches("right_exits_count_as_losses")
def test_losses_against_a_loop():
    random = np.random.default_rng(0)
    confidences, is_right = random.random((3, 50)), random.random((3, 50)) < 0.6
    for threshold in (0.2, 0.7, 0.95):
        layers, losses = [], 0
        for n in range(50):
            depth = next((d for d in range(2) if confidences[d, n] >= threshold), 2)
            layers.append(depth + 1)
            losses += bool(is_right[2, n]) and not bool(is_right[depth, n])
        assert exit_layers(confidences.copy(), threshold).tolist() == layers
        assert count_losses(confidences, is_right, [threshold]) == [losses]


def draw(random, count):
    """Records of a classifier whose exits are right as often as their confidence says, less 4 %."""
    difficulty = random.random(count)
    confidences = np.stack([1 - difficulty ** (1 + depth) / 2 for depth in range(4)])
    share = np.clip(confidences - 0.04, 0, 1)
    return confidences, random.random((4, count)) < share


@pytest.mark.catches("threshold_ignores_chance")
@pytest.mark.parametrize("limit", [0.02, 0.05])
def test_the_bound_holds_in_redrawn_splits(limit):
    """The true shares of losses are those of 200,000 records."""
    random = np.random.default_rng(7)
    truth = np.array(count_losses(*draw(random, 200_000))) / 200_000
    chosen = []
    for _ in range(20):
        losses = count_losses(*draw(random, 1000))
        chosen.append(choose_threshold(losses, 1000, limit, 0.95))
    assert sum(index < 0 or truth[index] <= limit for index in chosen) >= 18
    assert sum(index >= 0 for index in chosen) >= 18  # and exits are used
    assert truth[-1] > limit > truth[0]
    assert [*THRESHOLDS] == sorted(THRESHOLDS, reverse=True)
