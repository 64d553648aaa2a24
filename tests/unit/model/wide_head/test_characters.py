"""Character n-grams of texts in subwords, against plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.model.wide_head.characters import CharacterFeatures, character_keys
from miniformer.model.wide_head.ngrams import UNKNOWN

TOKENS = ["", " ", "a", "b", " ab", "ba c", "é"]


def a_batch(rows, types=None):
    length = max(map(len, rows))
    mask = [[True] * len(row) + [False] * (length - len(row)) for row in rows]
    ids = torch.tensor([[*row, *[2] * (length - len(row))] for row in rows])
    return {"inputs": ids, "attention_mask": torch.tensor(mask), "token_types": types}


def features_of_tokens(length=4):
    features = CharacterFeatures(1, length, len(TOKENS), 4)
    for row, token in zip(features.table, TOKENS, strict=True):
        row[: len(token)] = torch.tensor([ord(x) for x in token], dtype=torch.int32)
    return features


def ngrams(text, length):
    """All n-grams that have no space inside."""
    sequences = [text[i : i + n] for n in range(1, length + 1) for i in range(len(text) - n + 1)]
    return [ngram for ngram in sequences if " " not in ngram[1:-1]]


def hashes_of(text, length):
    """Hash of each n-gram that is a whole text of its own."""
    result = {}
    for ngram in ngrams(text, length):
        codes = torch.tensor([[ord(x) for x in ngram]])
        result[ngram] = int(character_keys(codes, torch.zeros_like(codes), length=length)[0, -1 if
                            len(ngram) == length else len(ngram) * len(ngram) - 1])  # fmt: skip
    return result


@pytest.mark.catches("characters_of_padding_count", "ngrams_of_characters_cross_words")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, len(TOKENS) - 1), min_size=1, max_size=6), min_size=1, max_size=3
    )
)
def test_hashes_are_those_of_the_ngrams_of_the_text(rows):
    features = features_of_tokens()
    actual = features.hashes(a_batch(rows))
    for row, keys in zip(rows, actual, strict=True):
        text = "".join(TOKENS[token] for token in row)
        by_ngram = hashes_of(text, 4)
        expected = sorted(by_ngram[ngram] for ngram in ngrams(text, 4))
        assert sorted(keys[keys != UNKNOWN].tolist()) == expected
        assert len(set(by_ngram.values())) == len(by_ngram)


def test_texts_of_other_types_have_other_ngrams():
    features = features_of_tokens()
    first = features.hashes(a_batch([[2, 3]], torch.tensor([[0, 0]])))
    second = features.hashes(a_batch([[2, 3]], torch.tensor([[1, 1]])))
    assert not set(first[first != UNKNOWN].tolist()) & set(second[second != UNKNOWN].tolist())
