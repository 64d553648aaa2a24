"""Matrices of features, against dense ones."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from miniformer.training.tuning.wide_head import matrix
from miniformer.training.tuning.wide_head.matrix import FeatureMatrix


@pytest.mark.catches("matrices_select_the_first_rows")
def test_selected_rows_are_those_of_the_dense_matrix():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(9, 4, generator=generator)
    sparse = torch.randn(9, 6, generator=generator).relu()
    rows = torch.tensor([7, 0, 3, 3])
    features = FeatureMatrix([dense, sparse.to_sparse_coo()]).select(rows)
    weight = torch.randn(10, 2, generator=generator)
    outputs = torch.randn(4, 2, generator=generator)
    expected = torch.cat([dense, sparse], 1)[rows]
    torch.testing.assert_close(features @ weight, expected @ weight)
    torch.testing.assert_close(features.transposed_product(outputs), expected.T @ outputs)


def test_blocks_that_inference_made_have_products():
    """Features of the training data are computed in inference mode."""
    dense = torch.eye(3)
    with torch.inference_mode():
        sparse = dense.to_sparse_coo()
    features = FeatureMatrix([sparse])
    assert torch.equal(features @ dense, dense)
    assert torch.equal(features.transposed_product(dense), dense)


@pytest.mark.catches("a_large_product_is_one_operation")
def test_a_large_product_is_computed_in_parts(monkeypatch):
    """An operation of torch does not answer Ctrl-C."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(9, 6, generator=generator).relu()
    weight, outputs = (torch.randn(n, 7, generator=generator) for n in (6, 9))
    block = FeatureMatrix([dense.to_sparse_coo()])
    at_once = block @ weight, block.transposed_product(outputs)
    count = int((dense != 0).sum())
    monkeypatch.setattr(matrix, "_MAX_PRODUCTS", 3 * count)
    widths = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "mm" in str(function):
                widths.append(result.shape[1])
            return result

    with Record():
        parts = block @ weight, block.transposed_product(outputs)
    assert widths == [3, 3, 1] * 2
    for part, expected in zip(parts, at_once, strict=True):
        assert torch.equal(part, expected)
