"""Activation checkpointing: what a training pass keeps for the backward pass (Chen et al. 2016).

| how       | kept of a layer                        | computed again                          |
|-----------|----------------------------------------|-----------------------------------------|
| none      | everything                             | nothing                                 |
| selective | its input, matrix products, attention  | norms, activations, rotations, dropout  |
| full      | its input                              | the whole layer: a third more work      |

Gradients are the same whichever is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from miniformer import registry
from miniformer.config import UserError
from miniformer.model.allocations import Births

HOW = ("none", "selective", "full")

_ATEN = torch.ops.aten
_KEPT = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
}


def check_how(how: str) -> None:
    """Raises UserError for a way that does not exist."""
    if how not in HOW:
        raise UserError(registry.unknown("activation checkpointing", how, list(HOW)))


def checkpointed(how: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """What `layer(*args, **kwargs)` gives, keeping less of it."""
    options: dict[str, Any] = {}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    out: Tensor = checkpoint(layer, *args, use_reentrant=False, **options, **kwargs)
    return out


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of tensors made by `forward()` that are still there after it: for the backward pass."""
    with Births() as births:
        out = forward()
    kept: int = births.living()
    del out
    return kept


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
