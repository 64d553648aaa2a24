"""Matrices of features, against dense ones."""

import pytest
import torch

from miniformer.training.tuning.wide_head.matrix import FeatureMatrix


@pytest.mark.catches("matrices_select_the_first_rows")
def test_selected_rows_are_those_of_the_dense_matrix():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(9, 4, generator=generator)
    sparse = torch.randn(9, 6, generator=generator).relu()
    rows = torch.tensor([7, 0, 3, 3])
    matrix = FeatureMatrix([dense, sparse.to_sparse_coo()]).select(rows)
    weight = torch.randn(10, 2, generator=generator)
    outputs = torch.randn(4, 2, generator=generator)
    expected = torch.cat([dense, sparse], 1)[rows]
    torch.testing.assert_close(matrix @ weight, expected @ weight)
    torch.testing.assert_close(matrix.transposed_product(outputs), expected.T @ outputs)
