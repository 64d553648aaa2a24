"""Features of the overlap of two texts: how much of each is in the other, and in which order.

Letters: B batch, T tokens of both texts, S and U positions of the first and the second text, V
vocabulary size, K features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniformer.model.wide_head.integer_forms import used_columns
from miniformer.model.wide_head.series import DenseFeatures
from miniformer.model.wide_head.sparse import Inputs

_MAX_LENGTH = 4  # tokens of the longest n-gram
_NUM_SIZES, _NUM_TOTALS, _NUM_ENDS = 4, 7, 6
NUM_OVERLAPS = _NUM_SIZES + 3 * _MAX_LENGTH + _NUM_TOTALS + _NUM_ENDS
_EPSILON = 1e-6


class OverlapFeatures(DenseFeatures):
    """Overlap of the two texts of a pair, K = 29.

    - lengths: the logarithms of both, their difference and its absolute value;
    - for n from 1 to 4: the shares of n-grams of each text that the other has, and their product;
    - of tokens weighted by their inverse document frequencies, for each text: the share that the
      other has, the logarithm of the weights that it lacks, and the largest of these; the cosine;
    - whether the first and the last tokens are equal; the length of the longest shared n-gram in
      relation to each text; root mean squared distance and correlation of the positions of
      shared tokens.

    Tokens that all training examples have, such as separators, do not count.

    Args:
        size: K.
        vocab: V.

    Attributes:
        idf: inverse document frequency of each token; 0: all examples have it, [V].
    """

    idf: Tensor

    def __init__(self, size: int, vocab: int) -> None:
        super().__init__(size)
        self.register_buffer("idf", torch.ones(vocab))

    def compute(self, inputs: Inputs) -> Tensor:
        """Features before standardization, float32 [B, K].

        Args:
            inputs: `inputs`, token ids, int [B, T]; `attention_mask`, bool [B, T], or None;
                `token_types`, int [B, T], even in the first text, odd in the second.
        """
        first, second = (self._read_text(inputs, number) for number in (0, 1))
        texts = (first, second)
        logs = [text.length.log() for text in texts]
        values = [*logs, logs[0] - logs[1], (logs[0] - logs[1]).abs()]

        matches = (first.ids[:, :, None] == second.ids[:, None]) & first.counted[:, :, None]
        matches &= second.counted[:, None]  # [B, S, U]
        run, longest = matches, torch.zeros_like(first.length)
        for n in range(1, _MAX_LENGTH + 1):
            if n > 1:  # n-grams that end at both positions
                run = nn.functional.pad(run, (1, 0, 1, 0))[:, :-1, :-1] & matches
            ends = [run.any(2), run.any(1)]
            longest = torch.where(ends[0].any(1), float(n), longest)
            copied_shares = [
                end.sum(1) / (text.length - n + 1).clamp_min(1)
                for end, text in zip(ends, texts, strict=True)
            ]
            values += [*copied_shares, copied_shares[0] * copied_shares[1]]

        for text, shared in zip(texts, (matches.any(2), matches.any(1)), strict=True):
            total = text.weights.sum(1).clamp_min(_EPSILON)
            missing = text.weights * ~shared
            values += [(text.weights * shared).sum(1) / total, missing.sum(1).log1p()]
            values.append(missing.amax(1))
        count = matches.float()
        squares = [text.weights.square() for text in texts]
        norms = [square.sum(1).clamp_min(_EPSILON) for square in squares]
        values.append((count.sum(2) * squares[0]).sum(1) / (norms[0] * norms[1]).sqrt())

        for last in (False, True):
            ends = [_end(text, last=last) for text in texts]
            values.append((ends[0] == ends[1]).float())
        values += [longest / text.length for text in texts]
        values += _order(count, first.ranks, second.ranks)
        return torch.stack(values, 1)

    def _read_text(self, inputs: Inputs, number: int) -> _Text:
        """The first text (0) or the second (1) of each pair."""
        ids, types, mask = (
            inputs.get(name) for name in ("inputs", "token_types", "attention_mask")
        )
        assert ids is not None
        assert types is not None
        is_text = types % 2 == number
        if mask is not None:
            is_text = is_text & mask
        start = is_text.int().argmax(1, keepdim=True)
        size = used_columns(is_text.sum(1), ids.shape[1])
        columns = (start + torch.arange(size, device=ids.device)).clamp_max(ids.shape[1] - 1)
        is_inside = torch.arange(size, device=ids.device) < is_text.sum(1, keepdim=True)
        ids = ids.gather(1, columns)
        weights = self.idf.float()[ids] * is_inside
        counted = weights > 0
        length = counted.sum(1).clamp_min(1).float()
        return _Text(ids, weights, counted, length, (counted.cumsum(1) - 1) / length[:, None])


class _Text(NamedTuple):
    """One text of each pair.

    Args:
        ids: token ids, [B, S].
        weights: their inverse document frequencies, [B, S]; 0: padding, or in all examples.
        counted: True where the weight is above 0, [B, S].
        length: number of tokens that count, at least 1, [B].
        ranks: relative positions among these, [B, S].
    """

    ids: Tensor
    weights: Tensor
    counted: Tensor
    length: Tensor
    ranks: Tensor


def _end(text: _Text, *, last: bool) -> Tensor:
    """The first or the last token of a text, [B]; -1: it has none."""
    column = torch.arange(text.ids.shape[1], device=text.ids.device)
    index = (column * text.counted).amax(1) if last else text.counted.int().argmax(1)
    token = text.ids.gather(1, index[:, None])[:, 0]
    return token.masked_fill(~text.counted.any(1), -1)


def _order(matches: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
    """Root mean squared distance and correlation of the positions of equal tokens, [B] each.

    Args:
        matches: 1 for equal tokens of both texts, float [B, S, U].
        first, second: relative positions in each text, [B, S] and [B, U].
    """
    rows, columns = matches.sum(2), matches.sum(1)
    count = rows.sum(1).clamp_min(1)
    mean_a, mean_b = (rows * first).sum(1) / count, (columns * second).sum(1) / count
    squares_a = (rows * first.square()).sum(1) / count
    squares_b = (columns * second.square()).sum(1) / count
    products = ((matches @ second[..., None])[..., 0] * first).sum(1) / count
    distance = (squares_a + squares_b - 2 * products).clamp_min(0).sqrt()
    variances = [(squares_a - mean_a.square()), (squares_b - mean_b.square())]
    scale = (variances[0].clamp_min(0) * variances[1].clamp_min(0)).sqrt()
    return [distance, (products - mean_a * mean_b) / scale.clamp_min(_EPSILON)]
