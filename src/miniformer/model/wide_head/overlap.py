"""Features of the overlap of two texts: how much of each is in the other, and in which order.

Letters: B batch, T tokens of both texts, S and U positions of the first and the second text, V
vocabulary size, K features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
      relation to each text; mean distance and correlation of the positions of shared tokens.

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
        ids, types, mask = (
            inputs.get(name) for name in ("inputs", "token_types", "attention_mask")
        )
        assert ids is not None
        assert types is not None
        weights = self.idf.float()[ids]
        counted = weights > 0
        if mask is not None:
            counted = counted & mask
        first, second = counted & (types % 2 == 0), counted & (types % 2 == 1)
        lengths = [text.sum(1).clamp_min(1).float() for text in (first, second)]
        logs = [length.log() for length in lengths]
        values = [*logs, logs[0] - logs[1], (logs[0] - logs[1]).abs()]

        matches = (ids[:, :, None] == ids[:, None]) & first[:, :, None] & second[:, None]
        run, longest = matches, torch.zeros_like(lengths[0])
        for n in range(1, _MAX_LENGTH + 1):
            if n > 1:  # n-grams that end at both positions
                shifted = nn.functional.pad(run, (1, 0, 1, 0))[:, :-1, :-1]
                run = shifted & matches
            longest = torch.where(run.flatten(1).any(1), float(n), longest)
            copied_shares = [
                run.any(axis).sum(1) / (length - n + 1).clamp_min(1)
                for axis, length in zip((2, 1), lengths, strict=True)
            ]
            values += [*copied_shares, copied_shares[0] * copied_shares[1]]

        shared = [matches.any(2) & first, matches.any(1) & second]  # [B, T] each
        squares = []
        for text, both in zip((first, second), shared, strict=True):
            total = (weights * text).sum(1).clamp_min(_EPSILON)
            missing = weights * (text & ~both)
            squares.append((weights.square() * text).sum(1).clamp_min(_EPSILON))
            values += [(weights * both).sum(1) / total, missing.sum(1).log1p(), missing.amax(1)]
        product = (matches * weights.square()[:, :, None]).sum((1, 2))
        values.append(product / (squares[0] * squares[1]).sqrt())

        ranks = [(text.cumsum(1) - 1) / length[:, None] for text, length in
                 zip((first, second), lengths, strict=True)]  # fmt: skip
        for position in (0.0, 1.0):
            ends = [_end(ids, text, last=bool(position)) for text in (first, second)]
            values.append((ends[0] == ends[1]).float())
        values += [longest / length for length in lengths]
        values += _order(matches, ranks[0], ranks[1])
        return torch.stack(values, 1)


def _end(ids: Tensor, text: Tensor, *, last: bool) -> Tensor:
    """The first or the last token of a text, [B]; -1: it has none."""
    column = torch.arange(ids.shape[1], device=ids.device)
    index = (column * text).amax(1) if last else text.int().argmax(1)
    token = ids.gather(1, index[:, None])[:, 0]
    return token.masked_fill(~text.any(1), -1)


def _order(matches: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
    """Mean distance and correlation of the relative positions of equal tokens, [B] each.

    Args:
        matches: equal tokens of both texts, bool [B, T, T].
        first, second: relative positions in each text, [B, T].
    """
    count = matches.sum((1, 2)).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return (values * matches).sum((1, 2)) / count

    a, b = first[:, :, None].expand_as(matches), second[:, None].expand_as(matches)
    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    variances = [mean(x * x) - mean_x.square() for x, mean_x in ((a, mean_a), (b, mean_b))]
    scale = (variances[0].clamp_min(0) * variances[1].clamp_min(0)).sqrt()
    return [mean((a - b).abs()), covariance / scale.clamp_min(_EPSILON)]
