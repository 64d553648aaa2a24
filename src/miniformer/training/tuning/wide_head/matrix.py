"""Features of many examples as a matrix of sparse and dense blocks of columns."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from miniformer.model.wide_head.sparse import Inputs, SparseFeatures

_MAX_PRODUCTS = 200_000_000  # of numbers in one operation: under a second


class FeatureMatrix:
    """Features of n examples, [n, K].

    Args:
        blocks: matrices [n, ...], sparse or dense, side by side.
    """

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        self.blocks = list(blocks)
        self.shape = (blocks[0].shape[0], sum(block.shape[1] for block in blocks))
        self._sizes = [block.shape[1] for block in blocks]
        self._rows = [compress(block) for block in blocks]
        self._columns = [compress(block.t()) for block in blocks]

    def __matmul__(self, weight: Tensor) -> Tensor:
        """Product with a matrix [K, C]: [n, C]."""
        parts = zip(self._rows, torch.split(weight, self._sizes), strict=True)
        return sum((_product(block, part) for block, part in parts), weight.new_zeros(()))

    def transposed_product(self, outputs: Tensor) -> Tensor:
        """Product of the transposed matrix with [n, C]: [K, C]."""
        return torch.cat([_product(block, outputs) for block in self._columns])

    def select(self, rows: Tensor) -> Self:
        """The examples at `rows`."""
        return type(self)([select_rows(block, rows) for block in self.blocks])


def select_rows(block: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix, sparse or dense."""
    return block.index_select(0, rows).coalesce() if block.is_sparse else block[rows]


def _product(matrix: Tensor, dense: Tensor) -> Tensor:
    """Product of a block and a dense matrix; a large one in parts, for which Ctrl-C waits."""
    count = matrix._nnz() * dense.shape[1] if matrix.is_sparse_csr else 0
    parts = [part.contiguous() for part in dense.chunk(1 + count // _MAX_PRODUCTS, 1)]
    return matrix @ dense if len(parts) == 1 else torch.cat([matrix @ part for part in parts], 1)


def compress(matrix: Tensor) -> Tensor:
    """A sparse matrix by rows (CSR), whose products are about ten times faster; dense: as it is."""
    if not matrix.is_sparse:
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        return matrix.to_sparse_csr()


def compute_block(features: Any, batches: Iterable[Inputs]) -> Tensor:
    """Features of all examples of some batches, sparse or dense [n, K].

    Args:
        features: module of a group of features.
        batches: inputs of the module.
    """
    results = [features(inputs) for inputs in batches]
    if not isinstance(results[0], SparseFeatures):
        return torch.cat([dense.float() for dense in results])
    columns, values = [], []
    for index, value in results:
        columns += [row[known] for row, known in zip(index, value != 0, strict=True)]
        values.append(value[value != 0])
    lengths = torch.tensor([len(row) for row in columns])
    rows = torch.arange(len(columns)).repeat_interleave(lengths)
    return torch.sparse_coo_tensor(
        torch.stack([rows, torch.cat(columns)]),
        torch.cat(values),
        (len(columns), features.size),
        check_invariants=True,
    ).coalesce()
