"""Features of single words, such as affixes and shape, as hashes for a linear model.

A word that the training data does not have is recognized by its parts: endings, capital letters,
digits. The features of the words beside it are derived from these hashes in the model (see
`miniformer.model.wide_head.word_context`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

MAX_AFFIX = 5  # characters
NGRAM_LENGTH = 4  # characters
MAX_NGRAMS = 16  # of a word, from its start
# Columns of `hash_words`. The first four are read for the words beside a word, too.
LOWERCASE, SHAPE, SUFFIX, WORD = range(4)
NUM_HASHES = 4 + 1 + 2 * MAX_AFFIX + MAX_NGRAMS
_NEIGHBOR_SUFFIX = 3  # characters


def hash_words(tokens: Iterable[str]) -> dict[str, np.ndarray]:
    """Hashes of the features of each distinct word, uint32 [NUM_HASHES]; 0: no feature."""
    table = {}
    for word in tokens:
        if word not in table:
            row = np.zeros(NUM_HASHES, dtype=np.uint32)
            for column, feature in _features(word):
                row[column] = (
                    zlib.crc32(f"{column} {feature}".encode("utf-8", "surrogatepass")) or 1
                )
            table[word] = row
    return table


def _features(word: str) -> Iterator[tuple[int, str]]:
    """Yields the features of a word, each with its column."""
    lowercase, shape = word.lower(), word_shape(word)
    yield LOWERCASE, lowercase
    yield SHAPE, re.sub(r"(.)\1+", r"\1", shape)
    yield SUFFIX, lowercase[-_NEIGHBOR_SUFFIX:]
    yield WORD, word
    yield 4, shape
    column = 5
    for length in range(1, MAX_AFFIX + 1):
        if length <= len(lowercase):
            yield column, lowercase[:length]
            yield column + 1, lowercase[-length:]
        column += 2
    framed = f"\n{lowercase}\n"
    for start in range(min(len(framed) - NGRAM_LENGTH + 1, MAX_NGRAMS)):
        yield column + start, framed[start : start + NGRAM_LENGTH]


def word_shape(word: str) -> str:
    """Classes of a word's characters: X uppercase, x lowercase, o other letters, 9 digits.

    Other characters stand for themselves.
    """
    return "".join(map(_character_class, word))


def _character_class(character: str) -> str:
    if character.isalpha():
        return "X" if character.isupper() else "x" if character.islower() else "o"
    return "9" if character.isdigit() else character
