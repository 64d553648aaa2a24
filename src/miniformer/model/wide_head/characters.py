"""Features of character n-grams of texts in subwords (Cavnar & Trenkle 1994).

Forms of a word have characters in common, but often no subwords. Each token is replaced by its
characters; an n-gram of them may begin or end with a space, and has none inside.

Letters: B batch, T tokens, M characters of the longest token, S characters of a text, L n-grams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniformer.model.wide_head.integer_forms import move_to_front, used_columns
from miniformer.model.wide_head.ngrams import UNKNOWN, NgramFeatures, positive, scramble
from miniformer.model.wide_head.sparse import Inputs

SPACE = ord(" ")


class CharacterFeatures(NgramFeatures):
    """Known n-grams of characters with their inverse document frequencies.

    Args:
        size: number of known n-grams.
        length: characters of the longest n-gram.
        vocab: number of tokens.
        width: M.

    Attributes:
        table: code points of the characters of each token, 0 after its end, int32 [vocab, M].
    """

    table: Tensor

    def __init__(self, size: int, length: int, vocab: int, width: int) -> None:
        super().__init__(size, length, positions=False, counts=False)
        self.register_buffer("table", torch.zeros(vocab, width, dtype=torch.int32))

    @property
    def stored_tables(self) -> tuple[str, ...]:
        """See `NgramFeatures`."""
        return ("idf", "table")

    def hashes(self, inputs: Inputs) -> Tensor:
        """Hashes of the n-grams of 1 to `length` characters: int64 [B, L]; -1: none."""
        codes, types = self.characters(inputs)
        return character_keys(codes, types, length=self.length)

    def characters(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Code points of each text without gaps, 0 after its end, and their token types: [B, S]."""
        ids, mask, types = (
            inputs.get(name) for name in ("inputs", "attention_mask", "token_types")
        )
        assert ids is not None
        codes = self.table[ids]  # [B, T, M]
        if mask is not None:
            codes = codes * mask[..., None]
        types = torch.zeros_like(ids) if types is None else types.long()
        types = types[..., None].expand_as(codes).flatten(1)
        codes = codes.flatten(1).long()
        size = used_columns((codes > 0).sum(1), codes.shape[1])
        first, second = move_to_front(codes > 0, codes, types)
        return first[:, :size], second[:, :size]


def character_keys(codes: Tensor, types: Tensor, *, length: int) -> Tensor:
    """Hashes of the n-grams of characters that end at each position: int64 [B, length * S].

    -1: padding, a space inside, or fewer characters before the position.

    Args:
        codes: code points, int64 [B, S]; 0: padding on the right.
        types: token types, int64 [B, S].
        length: characters of the longest n-gram.
    """
    is_real, is_space = codes > 0, codes == SPACE
    characters = scramble(scramble(codes + 1) + types)
    ngram, is_complete, result = torch.zeros_like(codes), is_real, []
    for n in range(length):
        ngram = scramble(_shift(ngram) + characters + n)
        if n:
            is_complete = _shift(is_complete) & is_real
        if n > 1:  # the character before is inside of the n-gram
            is_complete = is_complete & ~_shift(is_space)
        result.append(positive(ngram).masked_fill(~is_complete, UNKNOWN))
    return torch.cat(result, dim=1)


def _shift(values: Tensor) -> Tensor:
    """The values of the position before, [B, S]; 0 at the first."""
    return nn.functional.pad(values, (1, 0))[:, : values.shape[1]]
