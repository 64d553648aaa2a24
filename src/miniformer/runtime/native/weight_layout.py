"""Memory layout of matrices for the kernels; see products.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PANEL_ROWS = 16  # rows whose weights of one column are adjacent
INTERLEAVE_ROWS = 8  # consecutive rows of gate and of up projection, in turns


def pad_rows(rows: Tensor, multiple: int) -> Tensor:
    """Appends rows of zeros up to a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def to_panels(rows: Tensor, panel_rows: int) -> Tensor:
    """Transposes each block of `panel_rows` rows, [panel_rows, N, ...], to [N, panel_rows, ...]."""
    return rows.view(-1, panel_rows, *rows.shape[1:]).transpose(1, 2).contiguous()


def interleave_rows(matrices: Sequence[Tensor]) -> Tensor:
    """Interleaves the rows of several matrices in blocks of eight."""
    if len(matrices) == 1:
        return matrices[0]
    blocks = [
        pad_rows(matrix.detach(), INTERLEAVE_ROWS).view(-1, INTERLEAVE_ROWS, matrix.shape[1])
        for matrix in matrices
    ]
    return torch.stack(blocks, 1).flatten(0, 2)


def quantize_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantizes to int4 with a scale per group; two values from -8 to 7 in a byte, offset by 8.

    Candidate scales map the largest magnitude of a group to about -8 or to 7; each group has the
    candidate with the least squared error.

    Args:
        weight: float [rows, columns].
        group_size: columns per scale; divides `columns` and is a multiple of 8.

    Returns:
        uint8 [rows, columns / 8, 4], with the first four of eight columns in the low bits and the
        others in the high bits; and scales, float32 [rows, columns / group_size].
    """
    groups = weight.float().view(len(weight), -1, group_size)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best_scale = extreme / -8
    min_error = torch.full_like(extreme, torch.inf)
    for level in (-8.0, -7.6, -7.2, -6.8, 7.0):
        scale = extreme / level
        error = (groups - scale * _round_int4(groups, scale)).square().sum(-1, keepdim=True)
        better = error < min_error
        min_error = torch.where(better, error, min_error)
        best_scale = torch.where(better, scale, best_scale)
    scales = torch.where(groups.isfinite().all(-1, keepdim=True), best_scale, torch.nan)
    values = (_round_int4(groups, best_scale) + 8).to(torch.uint8).view(len(weight), -1, 2, 4)
    return values[:, :, 0] | values[:, :, 1] << 4, scales[..., 0]


def _round_int4(groups: Tensor, scales: Tensor) -> Tensor:
    return (groups / scales).nan_to_num().round().clamp(-8, 7)
