"""Linear maps: the weight that a module applies, and the type of its products.

A module that stores its weight in another form, such as a sum or quantized, has a method
`effective_weight`, and computes `x @ effective_weight().T + bias` in evaluation. Kernels, exporters
and tied heads call the function of that name instead of reading `weight`. A result that changes
must follow from parameters and buffers, whose changes are noticed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def effective_weight(module: Any) -> Tensor:
    """The weight that a linear-like module or an embedding applies in evaluation, [out, in]."""
    method = getattr(module, "effective_weight", None)
    weight: Tensor = module.weight if method is None else method()
    return weight


def embedding_weight(embedding: Any) -> Tensor | None:
    """The weight of an embedding, [V, D], that a tied head applies; None: it has none."""
    has_weight = hasattr(embedding, "effective_weight") or hasattr(embedding, "weight")
    return effective_weight(embedding) if has_weight else None


def local_width(module: Any) -> int:
    """Number of outputs of a linear-like module; of a sharded one, those on this device."""
    weight = getattr(module, "weight", None)
    if weight is None and hasattr(module, "out_features"):  # without making the weight
        return int(module.out_features)
    if weight is None:
        weight = effective_weight(module)
    to_local = getattr(weight, "to_local", None)  # of a DTensor
    return len(weight if to_local is None else to_local())


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Returns the type of a product of x: autocast's if it is on and casts x, else x's own."""
    device = x.device.type
    available = torch.amp.is_autocast_available(device)  # not for the meta device
    if available and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
