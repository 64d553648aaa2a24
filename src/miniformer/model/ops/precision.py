"""Which type a matrix product is computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The type of a product of x: autocast's, where it is on and would cast x, else x's own."""
    device = x.device.type
    known = torch.amp.is_autocast_available(device)  # the meta device is not
    if known and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
