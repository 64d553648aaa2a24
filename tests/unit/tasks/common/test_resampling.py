"""Metrics of resamples equal those of the repeated records in other libraries."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multiclass_matthews_corrcoef

from miniformer.tasks.common import resampling

SEEDS = st.integers(0, 10_000)


def drawn(seed, num_records, num_resamples=6):
    """Resamples as counts, and as rows of record numbers."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, num_records, (num_resamples, num_records))
    return np.stack([np.bincount(row, minlength=num_records) for row in rows]), rows


@pytest.mark.catches("matthews_of_one_class_is_zero")
@given(SEEDS, st.integers(1, 12), st.integers(2, 4))
def test_class_metrics_are_those_of_repeated_records(seed, num_records, num_classes):
    rng = np.random.default_rng(seed)
    # Few distinct classes, so that some resamples have one class only.
    truths, predictions = rng.integers(0, rng.integers(1, num_classes + 1), (2, num_records))
    counts, rows = drawn(seed, num_records)
    sums = resampling.sum_confusions(counts, truths, predictions, num_classes)
    f1, mcc = resampling.macro_f1(*sums), resampling.matthews_correlation(*sums)
    for k, row in enumerate(rows):
        assert f1[k] == pytest.approx(
            f1_score(truths[row], predictions[row], average="macro", zero_division=0)
        )
        pair = (torch.from_numpy(predictions[row]), torch.from_numpy(truths[row]))
        expected = float(multiclass_matthews_corrcoef(*pair, num_classes))
        assert mcc[k] == pytest.approx(expected, rel=2e-3, abs=1e-6)


@given(SEEDS, st.integers(3, 15))
def test_correlations_are_those_of_repeated_records(seed, num_records):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=num_records), rng.integers(0, 5, num_records) * 1.0
    counts, rows = drawn(seed, num_records)
    pearson, spearman = (
        fn(counts, first, second) for fn in (resampling.pearson, resampling.spearman)
    )
    for k, row in enumerate(rows):
        x, y = first[row], second[row]
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert pearson[k] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
            assert spearman[k] == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)
        else:
            assert (pearson[k], spearman[k]) == (0, 0)


def test_resampled_ranks_of_ties_are_their_means():
    counts = np.array([[1, 1, 1], [2, 0, 1]])
    ranks = resampling.resampled_ranks(counts, np.array([5.0, 5.0, 1.0]))
    assert ranks[0].tolist() == [2.5, 2.5, 1]
    assert ranks[1, [0, 2]].tolist() == [2.5, 1]


def test_divide_by_zero_gives_the_default():
    assert resampling.divide(np.array([1.0, 2.0]), np.array([0.0, 4.0]), 7.0).tolist() == [7, 0.5]
    assert np.isnan(resampling.weighted_mean(np.zeros((1, 2)), np.ones(2), np.ones(2))).all()
