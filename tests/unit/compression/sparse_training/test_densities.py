"""Numbers of weights by matrix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.compression.sparse_training.densities import weight_counts

SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6)


@pytest.mark.catches("matrices_have_too_many_weights")
@given(SHAPES, st.floats(0.01, 0.99), st.booleans())
def test_counts_sum_up_and_fit(shapes, sparsity, erk):
    sizes = [rows * columns for rows, columns in shapes]
    counts = weight_counts(shapes, sparsity, erk)
    assert sum(counts) == round((1 - sparsity) * sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


@pytest.mark.catches("erk_is_uniform")
def test_densities_have_their_proportions():
    shapes = [(100, 100), (400, 100), (50, 200)]
    sizes = [10_000, 40_000, 10_000]
    counts = weight_counts(shapes, 0.9, erk=True)
    densities = [count / size for count, size in zip(counts, sizes, strict=True)]
    # (O + I) / (O * I) of each: 0.02, 0.0125, 0.025
    assert densities[0] / densities[1] == pytest.approx(0.02 / 0.0125, rel=1e-3)
    assert densities[2] / densities[0] == pytest.approx(0.025 / 0.02, rel=1e-3)
    assert weight_counts(shapes, 0.9, erk=False) == [1000, 4000, 1000]
    # The small matrix is full, and the large ones share the rest.
    assert weight_counts([(2, 2), (100, 100), (100, 100)], 0.9, erk=True) == [4, 998, 998]
