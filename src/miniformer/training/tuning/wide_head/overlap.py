"""Fit of the overlap of two texts: inverse document frequencies of tokens."""

from __future__ import annotations

from typing import Any

import torch

from miniformer.config import TransformerConfig
from miniformer.model.wide_head.head import make_features
from miniformer.model.wide_head.overlap import NUM_OVERLAPS, OverlapFeatures
from miniformer.training.tuning.wide_head.data import WideData

_MAX_COMPARISONS = 5e8  # of tokens of all examples: about 5 s


def propose_overlap(config: TransformerConfig, data: WideData) -> list[dict[str, Any]]:
    """The group, if inputs are pairs whose texts have different token types."""
    comparisons = float((torch.from_numpy(data.lengths).double() ** 2).sum())
    if data.task.input_kind != "pair" or config.token_types is None:
        return []
    if comparisons > _MAX_COMPARISONS:
        return []
    return [{"type": "overlap", "size": NUM_OVERLAPS, "vocab": config.vocab_size}]


def fit_overlap(
    group: dict[str, Any], config: TransformerConfig, data: WideData
) -> OverlapFeatures:
    """Features with the document frequencies, means and standard deviations of the training data.

    Args:
        group: with `vocab`.
        config: of the model.
        data: the training data.
    """
    features: OverlapFeatures = make_features(group)
    counts, total = torch.zeros(group["vocab"]), 0
    for inputs in data.inputs():
        ids, mask = inputs["inputs"], inputs.get("attention_mask")
        assert ids is not None
        present = torch.zeros(len(ids), group["vocab"], dtype=torch.bool)
        rows = torch.arange(len(ids))[:, None].expand_as(ids)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        present[rows[real], ids[real]] = True
        counts += present.sum(0)
        total += len(ids)
    features.idf.copy_(((1 + total) / (1 + counts)).log())
    with torch.inference_mode():
        features.standardize(torch.cat([features.compute(inputs) for inputs in data.inputs()]))
    return features
