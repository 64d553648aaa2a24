"""Detection of the feature whose next number is the target, checked on held-out records."""

import numpy as np
import pytest

from miniformer.data.reading.records import as_records
from miniformer.tasks.regression import Regression
from miniformer.training.tuning.series import detect_series_feature

SCHEMA = Regression().schema


def chosen(inputs, values):
    records = [
        {"input": np.asarray(x).tolist(), "value": float(y)}
        for x, y in zip(inputs, values, strict=True)
    ]
    return detect_series_feature(as_records(records, SCHEMA))


def temperatures(seed, count=100):
    """Celsius, [count], and vectors of noisy readings of it and of noise, [T, 2] each."""
    random = np.random.default_rng(seed)
    true = random.normal(17, 8, count)
    readings = [
        np.stack([x + random.normal(0, 0.4, n), random.normal(0, 9, n)], 1)
        for x, n in zip(true, random.integers(3, 9, count), strict=True)
    ]
    return true, readings


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 273.15), (1.8, 32.0), (1.0, -40.0), (1.0, 8.0), (-1.0, 0.0)]
)
@pytest.mark.catches("series_ignores_level")
def test_next_feature_of_another_level_or_unit_is_not_adopted(seed, scale, offset):
    """A feature with the value in other units: its distance varies little, but is large."""
    true, readings = temperatures(seed)
    second = [x * [scale, 1] + [offset, 0] for x in readings]
    assert chosen(second, true) is None
    assert chosen(readings, true) == 0  # the same in the same units


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("level", [0.0, 1e6, -500.0])
def test_next_feature_of_a_walk_is_adopted_at_any_level(column, level):
    random = np.random.default_rng(3)
    inputs, values = [], []
    for _ in range(60):
        walk = level + random.normal(0, 20) + np.cumsum(random.normal(0, 2, 6))
        vectors = random.normal(level, 30, (5, 2))
        vectors[:, column] = walk[:5]
        inputs.append(vectors)
        values.append(walk[5])
    assert chosen(inputs, values) == column


@pytest.mark.catches("series_judged_on_its_own_records")
def test_next_feature_is_judged_on_records_that_it_was_not_chosen_by():
    """In every fifth record the value is unrelated to the feature; else it is equal."""
    random = np.random.default_rng(0)
    inputs = [random.normal(0, 10, (4, 1)) for _ in range(100)]
    values = [
        random.normal(0, 10) if number % 5 == 4 else float(vectors[-1, 0])
        for number, vectors in enumerate(inputs)
    ]
    assert chosen(inputs, values) is None
    assert chosen(inputs, [float(vectors[-1, 0]) for vectors in inputs]) == 0


@pytest.mark.parametrize("level", [0.0, 50.0])
@pytest.mark.parametrize(("share", "expected"), [(0.7, None), (0.98, 0)])
def test_next_feature_that_the_plain_target_follows_better_is_not_adopted(level, share, expected):
    """Mean-reverting values are near the feature; a linear map of it has no error.

    A series target leaves an error of 1 - share of the feature's spread, and 5 % are allowed.
    """
    random = np.random.default_rng(1)
    inputs = [level + random.normal(0, 10, (4, 1)) for _ in range(100)]
    values = [level + share * (float(vectors[-1, 0]) - level) for vectors in inputs]
    assert chosen(inputs, values) == expected


def test_next_feature_needs_ten_records_of_several_vectors():
    walks = [np.arange(n, n + 4.0)[:, None] for n in range(0, 90, 10)]
    assert chosen(walks, [float(walk[-1, 0]) + 1 for walk in walks]) is None
    walks.append(np.arange(90, 94.0)[:, None])
    assert chosen(walks, [float(walk[-1, 0]) + 1 for walk in walks]) == 0
    assert chosen([walk[-1:] for walk in walks], [float(w[-1, 0]) + 1 for w in walks]) is None
    assert chosen([[[1.0], [1.0]]] * 12, range(12)) is None


def test_next_feature_of_many_records_reads_a_sample():
    class Counted(list):
        read = 0

        def __getitem__(self, index):
            Counted.read += 1
            return super().__getitem__(index)

    walks = Counted(
        {"input": [[float(n)], [n + 1.0]], "value": n + 2.0 + n % 2} for n in range(15_000)
    )
    assert detect_series_feature(as_records(walks, SCHEMA)) == 0
    assert Counted.read == 10_000
