"""Fit of n-gram features: the n-grams that several training texts have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from miniformer.config import TransformerConfig
from miniformer.model.wide_head.head import make_features
from miniformer.model.wide_head.ngrams import (
    UNKNOWN,
    NgramFeatures,
    SecondTextFeatures,
    ngram_keys,
    second_text_keys,
)
from miniformer.training.tuning.wide_head.data import WideData

MAX_ALPHABET_SIZE = 300  # vocabulary size of characters and bytes
MAX_VALUES = 20_000_000  # of the weight: 80 MB
MAX_COUNTS = 4096  # n-grams whose numbers are features
_UNUSED_KEY = torch.iinfo(torch.int64).max  # of a head with room for more n-grams


def propose_ngrams(config: TransformerConfig, data: WideData) -> list[dict[str, Any]]:
    """Groups of n-gram features for the data, without sizes.

    N-grams have up to 3 tokens, or 5 characters or bytes. Positions are features if all training
    texts have the same number of tokens. Of pairs, the tokens of the second text are another group.
    """
    length = 5 if config.vocab_size <= MAX_ALPHABET_SIZE else 3
    positions = len(data.lengths) > 1 and bool((data.lengths == data.lengths[0]).all())
    groups = [{"type": "ngrams", "length": length, "positions": positions}]
    if positions:  # n-grams at any position, and tokens at their positions alone
        groups += [
            {"type": "ngrams", "length": length, "positions": False},
            {"type": "ngrams", "length": 1, "positions": True},
        ]
    if data.task.name == "regression":  # the norm would hide the length of a text
        groups.append({"type": "ngrams", "length": length, "positions": False, "counts": True})
    if data.task.input_kind == "pair" and config.token_types is not None:
        groups.append({"type": "second_text"})
    return groups


def fit_ngrams(
    group: dict[str, Any], config: TransformerConfig, data: WideData
) -> NgramFeatures | None:
    """Features of the most frequent n-grams of a group; None: no n-gram is in several texts.

    Args:
        group: with `size`, or without: as many as there are, up to a limit.
        config: of the model.
        data: the training data.
    """
    positions = group.get("positions", False)
    keys, counts = count_ngrams(data, length=group["length"], positions=positions)
    is_counts = group.get("counts", False)
    limit = MAX_COUNTS if is_counts else MAX_VALUES // (config.output_dim or 1)
    size = group.get("size") or min(len(keys), limit)
    if not size:
        return None
    features: NgramFeatures = make_features({**group, "size": size})
    known = set_known_ngrams(features, keys, counts, len(data.lengths))
    if is_counts:  # an example's squared values add up to 1 on average
        features.idf.fill_(1 / _mean_square(data, known, group) ** 0.5)
    return features


def fit_second_text(
    group: dict[str, Any], config: TransformerConfig, data: WideData
) -> SecondTextFeatures | None:
    """Features of the most frequent tokens of second texts; None: no token is in several texts.

    Args:
        group: with `size`, or without: as many as there are, up to a limit.
        config: of the model.
        data: the training data.
    """
    keys, counts = count_keys(map(second_text_keys, data.inputs()))
    size = group.get("size") or min(len(keys), MAX_VALUES // (config.output_dim or 1))
    if not size:
        return None
    features: SecondTextFeatures = make_features({**group, "size": size})
    set_known_ngrams(features, keys, counts, len(data.lengths))
    return features


def set_known_ngrams(features: NgramFeatures, keys: Tensor, counts: Tensor, total: int) -> Tensor:
    """Sets the most frequent n-grams as the known ones, with their inverse document frequencies.

    Args:
        features: with room for `size` n-grams.
        keys: hashes of n-grams, ascending, int64 [n].
        counts: texts that have them, [n].
        total: number of texts.

    Returns:
        The hashes of the known n-grams, ascending.
    """
    selected = counts.argsort(descending=True, stable=True)[: features.size].sort().values
    padding = features.size - len(selected)
    idf = ((1 + total) / (1 + counts[selected])).log() + 1
    features.keys.copy_(torch.nn.functional.pad(keys[selected], (0, padding), value=_UNUSED_KEY))
    features.idf.copy_(torch.nn.functional.pad(idf, (0, padding)))
    return keys[selected]


def _mean_square(data: WideData, known: Tensor, group: dict[str, Any]) -> float:
    """Mean over texts of the sum of the squared numbers of known n-grams."""
    total = 0.0
    for inputs in data.inputs():
        keys = ngram_keys(inputs, length=group["length"], positions=group.get("positions", False))
        for row in keys:
            _, counts = row[torch.isin(row, known)].unique(return_counts=True)
            total += float(counts.square().sum())
    return max(total / len(data.lengths), 1e-12)


def count_ngrams(data: WideData, *, length: int, positions: bool) -> tuple[Tensor, Tensor]:
    """Hashes of n-grams that several training examples have, ascending, and their document counts.

    Args:
        data: the training data.
        length, positions: see `ngram_keys`.

    Returns:
        int64 [K] and [K].
    """
    batches = (ngram_keys(inputs, length=length, positions=positions) for inputs in data.inputs())
    return count_keys(batches)


def count_keys(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Hashes that several examples have, ascending, and the numbers of these examples.

    Args:
        batches: hashes of the features of each example, int64 [B, L]; -1: none.

    Returns:
        int64 [K] and [K].
    """
    hashes = []
    for batch in batches:
        keys = batch.sort(-1).values
        is_first = keys != UNKNOWN
        is_first[:, 1:] &= keys[:, 1:] != keys[:, :-1]
        hashes.append(keys[is_first])
    keys, counts = torch.unique(torch.cat(hashes), return_counts=True)
    return keys[counts > 1], counts[counts > 1]
