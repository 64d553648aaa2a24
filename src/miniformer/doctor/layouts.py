"""Where padding and segments lie in the batches that the leak detector tries.

Every row has a layout of its own, so that a model that uses one row's mask for another is found.

Letters: B batch, T length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NUM_ROWS = 3


class Layout(NamedTuple):
    """Which tokens of a batch are real, and how a model is told."""

    name: str  # as in "changing row 1, <name>, moves ..."; empty: all tokens are real
    token_mask: Tensor  # bool [B, T]
    attention_mask: Tensor | None = None  # bool [B, T]: `attention_mask`
    segment_ids: Tensor | None = None  # int [B, T]: `segment_ids`


def padded_layouts(length: int, device: torch.device) -> list[Layout]:
    """No padding, and padding at either end; rows of different lengths."""
    columns = torch.arange(length, device=device)
    padding = torch.tensor([1, 3, 2], device=device).clamp_max(length - 1)[:, None]
    left, right = columns >= padding, columns < length - padding
    both = torch.stack((left[0], right[1], torch.ones_like(left[2])))
    masks = {"padded on the left": left, "padded on the right": right, "padded on both sides": both}
    return [
        Layout("", torch.ones_like(left)),
        *(Layout(name, mask, attention_mask=mask) for name, mask in masks.items()),
    ]


def packed_layout(length: int, device: torch.device) -> Layout:
    """Two sequences in each row, cut at different places, and a column of padding."""
    columns = torch.arange(length, device=device)
    cuts = (torch.tensor([3, 5, 2], device=device) * length // 8).clamp_min(1)[:, None]
    segments = 1 + (columns >= cuts).long()
    if length > 2:
        segments[1, -1] = 0
    return Layout("packed", segments != 0, segment_ids=segments)
