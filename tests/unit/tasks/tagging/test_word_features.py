"""Features of single words, and their hashes."""

import numpy as np
import pytest

from miniformer.tasks.tagging.word_features import (
    MAX_AFFIX,
    MAX_NGRAMS,
    NUM_HASHES,
    hash_words,
    word_shape,
)


@pytest.mark.parametrize(
    ("word", "shape"),
    [("McDonald", "XxXxxxxx"), ("12-3a", "99-9x"), ("東京", "oo"), ("É", "X"), ("", "")],
)
def test_word_shape_classes_of_characters(word, shape):
    assert word_shape(word) == shape


def test_hash_words_is_the_same_in_every_process():
    # A model directory holds hashes of an earlier process.
    assert hash_words(["Cape"])["Cape"][:5].tolist() == [
        102276305, 2099390570, 3859021555, 549339457, 42721097,
    ]  # fmt: skip


@pytest.mark.catches("affixes_have_no_length")
def test_hash_words_shares_the_affixes_that_words_share():
    table = hash_words(["walking", "Talking", "wal", "king"])
    first, second = table["walking"], table["Talking"]
    equal = np.flatnonzero((first == second) & (first != 0))
    prefixes = {5 + 2 * n for n in range(MAX_AFFIX)}
    suffixes = {6 + 2 * n for n in range(MAX_AFFIX)}
    assert set(equal) >= suffixes | {2}
    assert not set(equal) & (prefixes | {0, 1, 3, 4})
    assert (table["wal"][[5, 7, 9]] == first[[5, 7, 9]]).all()
    similar = hash_words(["working"])["working"]
    assert set(np.flatnonzero(similar == first)) >= {5, 6, 8}
    assert similar[7] != first[7]
    assert (table["king"][[11, 12, 13, 14]] != 0).tolist() == [True, True, False, False]


def test_hash_words_of_any_length_fit():
    table = hash_words(["x", "y" * 1000, "\ud800", "\u200b"])
    assert {row.shape for row in table.values()} == {(NUM_HASHES,)}
    assert all(row[0] != 0 for row in table.values())
    assert np.count_nonzero(table["y" * 1000][-MAX_NGRAMS:]) == MAX_NGRAMS
