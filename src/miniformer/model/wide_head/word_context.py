"""Features of words in their context, for tags of words.

The features of a word are its own, such as its affixes, which are hashed by
`miniformer.tasks.tagging.word_features`, some of the two words on each side, and pairs of
neighbors. A feature has the value 1.

Letters: B batch, V words of a row, H hashes of a word, L features of a word, K known features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniformer.model.wide_head.integer_forms import find_sorted
from miniformer.model.wide_head.ngrams import UNKNOWN, positive, scramble
from miniformer.model.wide_head.sparse import Inputs, SparseFeatures

# Columns of the hashes: lowercase form, shape and suffix.
_LOWERCASE, _SHAPE, _SUFFIX = range(3)
# Column and distance of the features of neighbors; sorted, so that their numbers are fixed.
_NEIGHBORS = (
    (_LOWERCASE, -2), (_LOWERCASE, -1), (_LOWERCASE, 1), (_LOWERCASE, 2),
    (_SHAPE, -1), (_SHAPE, 1), (_SUFFIX, -1), (_SUFFIX, 1),
)  # fmt: skip
_PAIRS = ((-1, 0), (0, 1), (-1, 1))  # distances of the lowercase forms of a pair


class WordFeatures(nn.Module):
    """Known features of each word.

    Args:
        size: number of known features.

    Attributes:
        keys: hashes of the known features, ascending, int64 [K].
    """

    keys: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("keys", torch.arange(size))

    def forward(self, inputs: Inputs) -> SparseFeatures:
        """Known features of each word: int [B, V, L], float [B, V, L], 0 if unknown.

        Args:
            inputs: `word_hashes`, int64 [B, V, H]; 0: no feature.
        """
        hashes = inputs["word_hashes"]
        assert hashes is not None
        keys = word_feature_keys(hashes)
        index = find_sorted(self.keys, keys)
        known = (self.keys[index] == keys) & (keys != UNKNOWN)
        return SparseFeatures(index, known.float())


def word_feature_keys(hashes: Tensor) -> Tensor:
    """Keys of the features of each word and its neighbors, int64 [B, V, L]; -1: no feature.

    A word beyond the first or the last one of a row is the border, which is a feature, too.

    Args:
        hashes: of the features of single words, int64 [B, V, H]; 0: no feature; a row of padding
            has zeros alone.
    """
    own = scramble(hashes).masked_fill(hashes == 0, UNKNOWN)
    is_word = hashes[..., _LOWERCASE] != 0

    def shifted(column: int, distance: int) -> Tensor:
        """Hashes of the words at a distance, 0 at a border: [B, V]."""
        values, width = hashes[..., column], hashes.shape[1]
        padded = F.pad(values, (max(-distance, 0), max(distance, 0)))
        start = max(distance, 0)
        return padded[:, start : start + width]

    context = [
        scramble(scramble(shifted(column, distance)) + number + 1)
        for number, (column, distance) in enumerate(_NEIGHBORS)
    ]
    for number, (first, second) in enumerate(_PAIRS, len(_NEIGHBORS) + 1):
        pair = scramble(shifted(_LOWERCASE, first)) + shifted(_LOWERCASE, second)
        context.append(scramble(scramble(pair) + number))
    keys = torch.stack(context, -1).masked_fill(~is_word[..., None], UNKNOWN)
    keys = torch.cat([own, keys], -1)
    return positive(keys).where(keys != UNKNOWN, UNKNOWN)
