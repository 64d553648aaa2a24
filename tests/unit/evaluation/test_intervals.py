"""Bootstrap intervals and tests against SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from miniformer.evaluation import intervals
from miniformer.evaluation.intervals import (
    Bootstrap,
    bootstrap_p_value,
    interval,
    mcnemar_p_value,
    wilson_interval,
)
from miniformer.tasks.common.resampling import weighted_mean


@pytest.mark.catches("interval_is_of_90_percent", "resamples_are_permutations")
def test_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(1).exponential(size=60)
    draws = Bootstrap(500, seed=3).metrics(
        60, lambda counts: {"mean": weighted_mean(counts, values, np.ones(60))}
    )
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(3)
    )
    assert draws["mean"] == pytest.approx(expected.bootstrap_distribution)
    assert interval(draws["mean"]) == pytest.approx(tuple(expected.confidence_interval))


def test_counts_are_the_same_in_small_and_large_chunks(monkeypatch):
    expected = np.concatenate([*Bootstrap(40, 5).counts(30)])
    assert (expected.shape, set(expected.sum(1))) == ((40, 30), {30})
    monkeypatch.setattr(intervals, "_CHUNK_DRAWS", 100)
    chunks = list(Bootstrap(40, 5).counts(30))
    assert {len(chunk) for chunk in chunks} == {3, 1}
    assert (np.concatenate(chunks) == expected).all()


def test_very_many_records_have_fewer_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "_MAX_DRAWS", 200 * 50)
    assert sum(map(len, Bootstrap(1000).counts(50))) == 200
    assert sum(map(len, Bootstrap(1000).counts(5000))) == 100
    assert list(Bootstrap(0).counts(5)) == []


def test_interval_leaves_out_undefined_values():
    assert interval(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0)
    assert interval(np.array([np.nan])) is None


@pytest.mark.catches("wilson_interval_is_that_of_wald")
@given(st.integers(1, 10**6), st.floats(0, 1))
def test_wilson_interval_is_that_of_scipy(count, share):
    for right in (0, round(share * count), count):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        limits = wilson_interval(right / count, count)
        assert limits == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= limits[0] <= right / count <= limits[1] <= 1


@pytest.mark.catches("mcnemar_is_one_sided")
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test_of_discordant_records(only_first, only_second, both):
    first = np.array([True] * only_first + [False] * only_second + [True] * both, dtype=bool)
    second = np.array([False] * only_first + [True] * only_second + [True] * both, dtype=bool)
    total = only_first + only_second
    expected = stats.binomtest(only_first, total).pvalue if total else 1.0
    assert mcnemar_p_value(first, second) == pytest.approx(expected)


def test_bootstrap_p_value_is_small_for_a_clear_difference_only():
    rng = np.random.default_rng(0)
    assert bootstrap_p_value(rng.normal(5, 1, 1000)) == pytest.approx(2 / 1001)
    assert bootstrap_p_value(rng.normal(0, 1, 1000)) > 0.5
    assert bootstrap_p_value(np.zeros(10)) == 1.0
    # A normal difference of 2 standard errors: 0.0455.
    assert bootstrap_p_value(rng.normal(2, 1, 100_000)) == pytest.approx(0.0455, rel=0.05)
