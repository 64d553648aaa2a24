"""Settings of a built model that change how it is computed, not what: backend, checkpointing."""

from __future__ import annotations

from torch import nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.model import attention_backends
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.ops.activation_checkpointing import CHECKPOINTING_MODES
from miniformer.model.stack import Stack


def set_attention_backend(model: nn.Module, backend: str, layers: list[int] | None = None) -> None:
    """Sets the attention backend of a model; see `attention_backends`.

    A backend that cannot compute the model's attention raises UserError when the model is called.

    Args:
        model: a model, or a submodule of one.
        backend: auto, or the name of a backend.
        layers: indices of the layers to change; None: all.

    Raises:
        UserError: the backend or a layer does not exist.
    """
    attention_backends.check_backend_name(backend)
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    count = max((len(stack.layers) for stack in stacks), default=0)
    missing = [index for index in layers or [] if not 0 <= index < count]
    if missing:
        available = f"its layers are 0 to {count - 1}" if count else "it has no stack of layers"
        raise UserError(f"the model has no layer {missing[0]}; {available}")
    for stack in stacks:
        for index, layer in enumerate(stack.layers):
            for module in layer.modules():
                if isinstance(module, MultiHeadAttention) and (layers is None or index in layers):
                    module.backend = backend


def set_activation_checkpointing(model: nn.Module, mode: str) -> None:
    """Sets the activation checkpointing of a model or submodule: none, selective or full.

    See `ops.activation_checkpointing`.

    Raises:
        UserError: the mode does not exist.
    """
    if mode not in CHECKPOINTING_MODES:
        known = list(CHECKPOINTING_MODES)
        raise UserError(registry.unknown_name_message("activation checkpointing", mode, known))
    for stack in (module for module in model.modules() if isinstance(module, Stack)):
        stack.checkpointing = mode
