"""Data type of matrix products."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Returns the type of a product of x: autocast's if it is on and casts x, else x's own."""
    device = x.device.type
    available = torch.amp.is_autocast_available(device)  # not for the meta device
    if available and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
