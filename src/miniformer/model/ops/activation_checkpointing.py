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
from miniformer.model.ops.allocation_tracker import AllocationTracker

CHECKPOINTING_MODES = ("none", "selective", "full")

_ATEN = torch.ops.aten
_SAVED_OPS = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
}


def check_mode(mode: str) -> None:
    """Raises UserError for a way that does not exist."""
    if mode not in CHECKPOINTING_MODES:
        raise UserError(
            registry.unknown_name_message(
                "activation checkpointing", mode, list(CHECKPOINTING_MODES)
            )
        )


def checkpoint_layer(mode: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """What `layer(*args, **kwargs)` gives, keeping less of it."""
    options: dict[str, Any] = {}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _checkpoint_policy)
    out: Tensor = checkpoint(layer, *args, use_reentrant=False, **options, **kwargs)
    return out


def saved_activation_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of tensors made by `forward()` that are still there after it: for the backward pass."""
    with AllocationTracker() as births:
        out = forward()
    kept: int = births.live_bytes()
    del out
    return kept


def _checkpoint_policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in _SAVED_OPS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
