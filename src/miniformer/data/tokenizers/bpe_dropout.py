"""Subword regularisation: other splits of the same text with each pass (BPE-dropout).

    tokens  | trans lation s        each was merged of two, those of two, and so on
    undone  | tr ans lation s       with a chance for each merge, from the last one on

BPE-dropout (Provilkov et al. 2020) leaves merges out while a text is encoded; here they are undone
afterwards, at the cost of a few array operations, so that data is encoded once.
"""

from __future__ import annotations

import json
from functools import partial

import numpy as np

from miniformer.config import UserError
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn
from miniformer.data.tokenizers.tokenizer import Tokenizer


class BPEMerges:
    """The two tokens that each token of a bpe tokenizer was merged of.

    Args:
        tokenizer: its file tells.

    Raises:
        UserError: it is no bpe tokenizer.
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
        self.left = np.full(tokenizer.vocab_size, -1)  # -1: merged of nothing
        self.right = self.left.copy()
        for merge in model["merges"]:
            one, two = merge.split(" ") if isinstance(merge, str) else merge
            whole = vocab.get(one + two.removeprefix(prefix))
            if whole is not None and self.left[whole] < 0:  # the merge that it comes of first
                self.left[whole], self.right[whole] = vocab[one], vocab[two]

    def apply_dropout(
        self, ids: np.ndarray, dropout: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens with merges undone, int [T'], and for each the place that it had, int [T'].

        Args:
            ids: int [T].
            share: the chance of a merge to be undone.
            random: decides.
        """
        places, fresh = np.arange(len(ids)), np.ones(len(ids), dtype=bool)
        while True:
            chosen = fresh & (self.left[ids] >= 0) & (rng.random(len(ids)) < dropout)
            if not chosen.any():
                return ids, places
            counts = 1 + chosen
            begins = (counts.cumsum() - counts)[chosen]
            split, ids = ids[chosen], ids.repeat(counts)
            ids[begins], ids[begins + 1] = self.left[split], self.right[split]
            places, fresh = places.repeat(counts), chosen.repeat(counts)


def with_bpe_dropout(
    collate_fn: CollateFn,
    dropout: float,
    *,
    merges: dict[str, BPEMerges],
    aligned_columns: tuple[str, ...] = (),
    max_length: int,
) -> CollateFn:
    """A `collate` whose batches have merges undone, where it is given chance; else as it is.

    Args:
        collate: makes a batch of examples.
        share: the chance of a merge to be undone; 0: `collate` itself.
        merges: name of an example's token ids -> what they are merged of.
        beside: names of arrays that have a number for each of those tokens.
        limit: tokens in a row at most; one that would be longer stays as it is.
    """
    if not dropout:
        return collate_fn
    return partial(
        _collate_with_dropout,
        collate_fn=collate_fn,
        dropout=dropout,
        merges=merges,
        aligned_columns=aligned_columns,
        max_length=max_length,
    )


def _collate_with_dropout(
    examples: list[Example],
    rng: np.random.Generator | None,
    *,
    collate_fn: CollateFn,
    dropout: float,
    merges: dict[str, BPEMerges],
    aligned_columns: tuple[str, ...],
    max_length: int,
) -> Batch:
    if rng is None:
        return collate_fn(examples, rng)
    changed = []
    for example in examples:
        changed.append(dict(example))
        for name, each in merges.items():
            ids, places = each.apply_dropout(example[name], dropout, rng)
            if len(ids) <= max_length:
                changed[-1][name] = ids
                changed[-1].update({other: example[other][places] for other in aligned_columns})
    return collate_fn(changed, rng)
