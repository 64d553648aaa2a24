"""Optimisers by name: (model, lr=..., weight_decay=...) -> torch optimiser."""

from __future__ import annotations

import torch
from torch import nn

from miniformer.model.head import Head


def adamw(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2017), fused. Only the matrices of linear layers decay."""
    maps = [module for module in model.modules() if isinstance(module, nn.Linear | Head)]
    matrices = {id(module.weight) for module in maps if module.weight is not None}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # beta2 = 0.95, as for GPT-3: small batches make 0.999 too slow to follow the gradient's size.
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
