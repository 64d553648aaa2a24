"""Encoded sources of several lengths: joined, replaced, selected and taken apart."""

import pytest
import torch

from miniformer.model.memory import Memory


def sources(*lengths):
    torch.manual_seed(0)
    return [Memory(torch.randn(1, length, 3)) for length in lengths]


def rows_of(memory):
    """Features of each source without padding, by their masks in a plain loop."""
    if memory.mask is None:
        return list(memory.features)
    return [row[mask] for row, mask in zip(memory.features, memory.mask, strict=True)]


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.catches("split_sources_keep_their_padding")
@pytest.mark.parametrize("lengths", [(4,), (3, 3), (2, 5, 1)])
def test_split_is_the_inverse_of_join(lengths):
    parts = sources(*lengths)
    joined = Memory.join(parts)
    assert (joined.mask is None) == (len(set(lengths)) == 1)
    assert_equal(rows_of(joined), [part.features[0] for part in parts])
    split = joined.split()
    assert all(part.mask is None for part in split)
    assert_equal([part.features for part in split], [part.features for part in parts])
    mask_bytes = 0 if joined.mask is None else joined.mask.numel()
    assert joined.nbytes == 4 * joined.features.numel() + mask_bytes


def test_inserted_sources_replace_those_of_their_rows():
    parts = sources(2, 4, 3, 6)
    memory = Memory.join(parts[:3]).insert(torch.tensor([1]), parts[3])
    expected = [parts[n].features[0] for n in (0, 3, 2)]
    assert_equal(rows_of(memory), expected)
    assert_equal(rows_of(memory.select(torch.tensor([2, 2, 1]))), [expected[n] for n in (2, 2, 1)])
