"""Folds partition the records: equal shares of classes, equal inputs together."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from miniformer.config import UserError
from miniformer.data.folds import assign_folds, fold_numbers, split_fold
from miniformer.data.reading.records import as_records


@pytest.mark.catches("folds_ignore_classes")
@given(st.lists(st.integers(0, 3), min_size=6, max_size=60), st.integers(2, 6), st.integers(0, 99))
def test_folds_have_equal_sizes_and_shares_of_classes(labels, num_folds, seed):
    folds = assign_folds(range(len(labels)), labels, num_folds, seed)
    sizes = np.bincount(folds, minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1
    for label in set(labels):
        counts = np.bincount(folds[np.array(labels) == label], minlength=num_folds)
        assert counts.max() - counts.min() <= 1


def test_folds_have_the_counts_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [50, 23, 9])
    folds = assign_folds(range(82), labels.tolist(), 5, seed=0)
    reference = np.zeros(82, int)
    for number, (_, rows) in enumerate(StratifiedKFold(5).split(labels, labels)):
        reference[rows] = number
    for label in range(3):
        actual, expected = (
            sorted(np.bincount(numbers[labels == label], minlength=5))
            for numbers in (folds, reference)
        )
        assert actual == expected
    assert sorted(np.bincount(folds)) == sorted(np.bincount(reference))


@pytest.mark.catches("folds_divide_equal_inputs")
@given(st.lists(st.integers(0, 9), min_size=12, max_size=60), st.integers(2, 4))
def test_folds_keep_groups_together(groups, num_folds):
    strata = [group % 2 for group in groups]
    folds = assign_folds(groups, strata, num_folds, seed=1)
    for group in set(groups):
        assert len({fold for fold, name in zip(folds, groups, strict=True) if name == group}) == 1
    sizes = np.bincount(folds, minlength=num_folds)
    largest = max(Counter(groups).values())
    assert sizes.max() - sizes.min() <= 2 * largest


@pytest.mark.parametrize(
    "target",
    [
        lambda n: {"label": "ab"[n % 2]},
        lambda n: {"labels": ["x", "y"][: n % 3]},
        lambda n: {"value": float(n)},
        lambda n: {"value": [n, 1.0]},
    ],
)
def test_split_fold_gives_each_record_once(target):
    rows = [{"input": f"text {n // 2}", **target(n // 2)} for n in range(40)]
    records = as_records(rows, {"input": str})
    seen: list[int] = []
    for fold in (1, 2, 3):
        train, val = split_fold(records, 3, fold, seed=5)
        assert sorted([*train.indices, *val.indices]) == list(range(40))
        assert not {r["input"] for r in train} & {r["input"] for r in val}
        seen += val.indices.tolist()
    assert sorted(seen) == list(range(40))
    numbers = fold_numbers(records, 3, seed=5)
    assert (numbers == fold_numbers(records, 3, seed=5)).all()
    assert (numbers != fold_numbers(records, 3, seed=6)).any()


def test_folds_of_values_have_similar_means():
    values = np.random.default_rng(0).exponential(size=200)
    rows = [{"input": str(n), "value": float(value)} for n, value in enumerate(values)]
    numbers = fold_numbers(as_records(rows, {"input": str}), 4, seed=0)
    means = [values[numbers == fold].mean() for fold in range(1, 5)]
    assert max(means) - min(means) < 0.15  # of random folds about 0.3


def test_folds_need_as_many_different_inputs(tmp_path):
    records = as_records([{"input": "same", "label": 1}] * 9, {"input": str})
    with pytest.raises(UserError, match="folds=3, but records has 1 different inputs; lower folds"):
        fold_numbers(records, 3, seed=0)
    path = tmp_path / "t.txt"
    path.write_text("a text\n")
    with pytest.raises(UserError, match="the training data is plain text"):
        fold_numbers(as_records(str(path), {"text": str}), 2, seed=0)
