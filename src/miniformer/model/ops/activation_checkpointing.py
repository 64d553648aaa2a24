"""Activation checkpointing: the tensors saved for the backward pass (Chen et al. 2016).

| mode      | saved of a layer                       | recomputed                              |
|-----------|----------------------------------------|-----------------------------------------|
| none      | all activations                        | nothing                                 |
| selective | its input, matrix products, attention  | norms, activations, rotations, dropout  |
| full      | its input                              | the layer: a third more compute         |

Gradients are equal in all modes.
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


def checkpoint_layer(mode: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Calls `layer(*args, **kwargs)` with activation checkpointing."""
    options: dict[str, Any] = {}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _checkpoint_policy)
    out: Tensor = checkpoint(layer, *args, use_reentrant=False, **options, **kwargs)
    return out


def saved_activation_bytes(forward: Callable[[], Tensor]) -> int:
    """Returns bytes of the tensors that `forward()` leaves in memory for the backward pass."""
    with AllocationTracker() as tracker:
        out = forward()
    saved: int = tracker.live_bytes()
    del out
    return saved


def _checkpoint_policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    saved = operator in _SAVED_OPS
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE
