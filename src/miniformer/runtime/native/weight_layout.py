"""How the kernels want the rows of a matrix to lie; see products.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PANEL_ROWS, INTERLEAVE_ROWS = (
    16,
    8,
)  # rows whose numbers lie side by side; rows of gate and of up in turns


def pad_rows(rows: Tensor, multiple: int) -> Tensor:
    """Rows of zeros are added, up to a multiple."""
    more = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


def to_panels(rows: Tensor, panel_rows: int) -> Tensor:
    """Of each `many` rows, [many, N, ...], what is of one column side by side: [N, many, ...]."""
    return rows.view(-1, panel_rows, *rows.shape[1:]).transpose(1, 2).contiguous()


def interleave_rows(matrices: Sequence[Tensor]) -> Tensor:
    """Rows of several matrices, eight of one after eight of the other; of one as they are."""
    if len(matrices) == 1:
        return matrices[0]
    eights = [
        pad_rows(part.detach(), INTERLEAVE_ROWS).view(-1, INTERLEAVE_ROWS, part.shape[1])
        for part in matrices
    ]
    return torch.stack(eights, 1).flatten(0, 2)


def quantize_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Numbers as integers from -8 to 7, 8 up, two in a byte, and their scales.

    Of the scales that make a group's largest magnitude -8, or a little more than that, each group
    has the one that leaves the least squared error.

    Args:
        weight: float [rows, columns].
        group: columns that share a scale; they are a multiple of it, and it of 8.

    Returns:
        uint8 [rows, columns / 8, 4]: below the first four of eight columns, above the others; and
        float32 [rows, columns / group].
    """
    groups = weight.float().view(len(weight), -1, group_size)
    most = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best = most / -8
    least = torch.full_like(most, torch.inf)
    for whole in (-8.0, -7.6, -7.2, -6.8, 7.0):
        tried = most / whole
        error = (groups - tried * _round_int4(groups, tried)).square().sum(-1, keepdim=True)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, tried, best)
    scales = torch.where(groups.isfinite().all(-1, keepdim=True), best, torch.nan)
    fours = (_round_int4(groups, best) + 8).to(torch.uint8).view(len(weight), -1, 2, 4)
    return fours[:, :, 0] | fours[:, :, 1] << 4, scales[..., 0]


def _round_int4(groups: Tensor, scales: Tensor) -> Tensor:
    return (groups / scales).nan_to_num().round().clamp(-8, 7)
