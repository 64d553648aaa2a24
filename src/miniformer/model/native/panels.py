"""How the kernels want the rows of a matrix to lie; see products.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PANEL, HALF = 16, 8  # rows whose numbers lie side by side; rows of gate and of up in turns


def up_to(rows: Tensor, multiple: int) -> Tensor:
    """Rows of zeros are added, up to a multiple."""
    more = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


def panels(rows: Tensor, many: int) -> Tensor:
    """Of each `many` rows, [many, N, ...], what is of one column side by side: [N, many, ...]."""
    return rows.view(-1, many, *rows.shape[1:]).transpose(1, 2).contiguous()


def in_turns(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several matrices, eight of one after eight of the other; of one as they are."""
    if len(parts) == 1:
        return parts[0]
    eights = [up_to(part.detach(), HALF).view(-1, HALF, part.shape[1]) for part in parts]
    return torch.stack(eights, 1).flatten(0, 2)
