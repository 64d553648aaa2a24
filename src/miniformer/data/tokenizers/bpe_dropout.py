"""BPE dropout: subword regularization with a different split of each text in each epoch.

    tokens  | trans lation s        each token was merged from two, recursively
    undone  | tr ans lation s       each merge is undone at random, starting with the last

BPE-dropout (Provilkov et al. 2020) skips merges during encoding. Here they are undone afterwards,
with a few array operations, so that data is encoded once.
"""

from __future__ import annotations

import json

import numpy as np

from miniformer.config import UserError
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn
from miniformer.data.tokenizers.tokenizer import Tokenizer


class BPEMerges:
    """The two tokens that were merged into each token of a BPE tokenizer.

    Raises:
        UserError: the tokenizer is not BPE.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        model = json.loads(tokenizer.backend.to_str())["model"]
        if model["type"] != "BPE" or not model["merges"]:
            kind = model["type"] if model["type"] != "BPE" else "a bpe tokenizer without merges"
            raise UserError(
                f"bpe_dropout undoes merges of a bpe tokenizer, and this one is {kind}; set "
                "tokenizer=bpe, or leave it out"
            )
        vocab, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
        self.left = np.full(tokenizer.vocab_size, -1)  # -1: not a merged token
        self.right = self.left.copy()
        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            merged = vocab.get(left + right.removeprefix(prefix))
            if merged is not None and self.left[merged] < 0:  # the first merge of a token counts
                self.left[merged], self.right[merged] = vocab[left], vocab[right]

    def apply_dropout(
        self, ids: np.ndarray, dropout: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, int [T], with merges undone, int [T'], and the position that each is from."""
        positions, is_new = np.arange(len(ids)), np.ones(len(ids), dtype=bool)
        while True:
            is_split = is_new & (self.left[ids] >= 0) & (rng.random(len(ids)) < dropout)
            if not is_split.any():
                return ids, positions
            counts = 1 + is_split
            starts = (counts.cumsum() - counts)[is_split]
            split_ids, ids = ids[is_split], ids.repeat(counts)
            ids[starts], ids[starts + 1] = self.left[split_ids], self.right[split_ids]
            positions, is_new = positions.repeat(counts), is_split.repeat(counts)


def with_bpe_dropout(
    collate_fn: CollateFn,
    dropout: float,
    *,
    merges: dict[str, BPEMerges],
    aligned_columns: tuple[str, ...] = (),
    max_length: int,
) -> CollateFn:
    """Adds BPE dropout to a collate function; it applies only with a random generator.

    Args:
        collate_fn: makes a batch of examples.
        dropout: probability of undoing a merge; 0: returns `collate_fn` itself.
        merges: column of token ids -> merges of its tokenizer.
        aligned_columns: columns with one value for each of those tokens.
        max_length: maximum number of tokens; an example that would exceed it is not changed.
    """
    if not dropout:
        return collate_fn

    def collate(examples: list[Example], rng: np.random.Generator | None) -> Batch:
        if rng is None:
            return collate_fn(examples, rng)
        result = []
        for example in examples:
            result.append(dict(example))
            for name, column_merges in merges.items():
                ids, positions = column_merges.apply_dropout(example[name], dropout, rng)
                if len(ids) <= max_length:
                    aligned = {column: example[column][positions] for column in aligned_columns}
                    result[-1].update({name: ids, **aligned})
        return collate_fn(result, rng)

    return collate
