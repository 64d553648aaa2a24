"""Features of token n-grams (Wang & Manning 2012).

An n-gram is the sequence of up to `length` token ids, with their token types, that ends at a
position; with `positions` a token together with its position is a feature, too. An example is the
vector of the inverse document frequencies of its known n-grams, each occurrence counted, divided by
its norm.

Letters: B batch, T length, L n-grams of an example, K known n-grams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniformer.model.wide_head.integer_forms import find_sorted
from miniformer.model.wide_head.sparse import Inputs, SparseFeatures

_MULTIPLIER = -7046029254386353131  # 2**64 / golden ratio, odd
_MASK = 2**31 - 1  # clears the sign that a shift to the right extends
UNKNOWN = -1


class NgramFeatures(nn.Module):
    """Known n-grams of each example with their inverse document frequencies.

    Args:
        size: number of known n-grams.
        length: tokens of the longest n-gram.
        positions: a token together with its position is a feature, too.
        counts: values are the numbers of occurrences times `idf`, not divided by the norm, so that
            they depend on the length of a text.

    Attributes:
        keys: hashes of the known n-grams, ascending, int64 [K].
        idf: their inverse document frequencies, or one factor for all with `counts`, [K].
    """

    keys: Tensor
    idf: Tensor

    def __init__(self, size: int, length: int, positions: bool, counts: bool) -> None:
        super().__init__()
        self.size, self.length = size, length
        self.positions, self.counts = positions, counts
        self.register_buffer("keys", torch.arange(size))
        self.register_buffer("idf", torch.zeros(size))

    @property
    def stored_tables(self) -> tuple[str, ...]:
        """Buffers that can be stored in half of their bytes; see `weight_storage.named_tables`."""
        return () if self.counts else ("idf",)

    def forward(self, inputs: Inputs) -> SparseFeatures:
        """Known n-grams of each example and their values: int [B, L], float [B, L].

        An unknown n-gram has the value 0. Without `counts` the squares of a row's values add up to
        1, or to 0.

        Args:
            inputs: `inputs`, token ids, int [B, T]; `attention_mask`, bool [B, T], True = a real
                position, or None: all are; `token_types`, int [B, T], or None: all are 0.
        """
        keys = self.hashes(inputs)
        index = find_sorted(self.keys, keys)
        known = (self.keys[index] == keys) & (keys != UNKNOWN)
        values = self.idf[index].float() * known
        if self.counts:
            return SparseFeatures(index, values)
        norm = values.square().sum(-1, keepdim=True).sqrt()
        return SparseFeatures(index, values / norm.clamp_min(1e-12))

    def hashes(self, inputs: Inputs) -> Tensor:
        """Hashes of the n-grams: int64 [B, L]; -1: none."""
        return ngram_keys(inputs, length=self.length, positions=self.positions)


class SecondTextFeatures(NgramFeatures):
    """Tokens of the second text of a pair, each as it is and together with its token type.

    The type says whether the first text has the token, too, if shared tokens are marked. So a word
    such as "not" counts differently in the second text alone (Bowman et al. 2015, arXiv 1508.05326,
    have such features for inference). Tokens of the first text are no features: several pairs may
    have the same first text, with different labels.

    Args:
        size: number of known features.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, length=1, positions=False, counts=False)

    def hashes(self, inputs: Inputs) -> Tensor:
        """Hashes of the tokens: int64 [B, 2T]; -1: none."""
        return second_text_keys(inputs)


def second_text_keys(inputs: Inputs) -> Tensor:
    """Hashes of the tokens of the second text, without and with token types: int64 [B, 2T].

    -1: padding, or a token of the first text.

    Args:
        inputs: see `NgramFeatures.forward`; `token_types` are odd in the second text.
    """
    types, mask = inputs["token_types"], inputs.get("attention_mask")
    assert types is not None
    is_second = types % 2 == 1
    second = {**inputs, "attention_mask": is_second if mask is None else is_second & mask}
    keys = (
        ngram_keys(view, length=1, positions=False)
        for view in ({**second, "token_types": None}, second)
    )
    return torch.cat([*keys], dim=1)


def ngram_keys(inputs: Inputs, *, length: int, positions: bool) -> Tensor:
    """Hashes of the n-grams that end at each position: int64 [B, L].

    -1: padding, or fewer tokens before the position than the n-gram has.

    Args:
        inputs: see `NgramFeatures.forward`.
        length: tokens of the longest n-gram.
        positions: adds each token together with its position.
    """
    ids, real, token_types = (
        inputs.get(name) for name in ("inputs", "attention_mask", "token_types")
    )
    assert ids is not None
    real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
    tokens = ids.long() + 1
    if token_types is not None:
        tokens = scramble(tokens) + token_types.long()
    tokens = scramble(tokens)
    column = torch.arange(ids.shape[1], device=ids.device)
    ngram, is_complete, result = torch.zeros_like(tokens), real, []
    for n in range(length):
        # The hash of the n tokens that end one position earlier, continued by this token.
        previous = torch.nn.functional.pad(ngram, (1, 0))[:, : ngram.shape[1]]
        ngram = scramble(previous + tokens + n)
        if n:
            before = torch.nn.functional.pad(is_complete, (1, 0))[:, : ngram.shape[1]]
            is_complete = before & real
        result.append(positive(ngram).masked_fill(~is_complete, UNKNOWN))
    if positions:
        start = real.int().argmax(-1, keepdim=True)  # padding may be on the left
        placed = scramble(scramble(column - start + 1) + tokens + length)
        result.append(positive(placed).masked_fill(~real, UNKNOWN))
    return torch.cat(result, dim=-1)


def scramble(values: Tensor) -> Tensor:
    """Permutation of int64 values that spreads close values far apart."""
    values = values * _MULTIPLIER  # wraps around
    values = values ^ ((values >> 32) & _MASK)
    return values * _MULTIPLIER


def positive(values: Tensor) -> Tensor:
    """Values without their sign, int64 of 63 bits."""
    return values & torch.iinfo(torch.int64).max
