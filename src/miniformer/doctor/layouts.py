"""Padding and segment layouts of the batches of the leak detector.

The rows of a layout differ, which detects a model that applies the mask of one row to another.

Letters: B batch, T length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NUM_ROWS = 3


class Layout(NamedTuple):
    """Real tokens of a batch and the masks that the model receives."""

    name: str  # shown in messages; empty: all tokens are real
    token_mask: Tensor  # bool [B, T]
    attention_mask: Tensor | None = None  # bool [B, T]
    segment_ids: Tensor | None = None  # int [B, T]


def padded_layouts(length: int, device: torch.device) -> list[Layout]:
    """Layouts without padding and with padding on the left, right or both sides."""
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
    """Layout with two sequences of different lengths per row and one padding token."""
    columns = torch.arange(length, device=device)
    boundaries = (torch.tensor([3, 5, 2], device=device) * length // 8).clamp_min(1)[:, None]
    segment_ids = 1 + (columns >= boundaries).long()
    if length > 2:
        segment_ids[1, -1] = 0
    return Layout("packed", segment_ids != 0, segment_ids=segment_ids)
