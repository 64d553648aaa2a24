"""Inputs to vectors: token ids or features, and token types.

Letters: B batch, T length, D model width, I feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig


def make_embedding(config: TransformerConfig) -> nn.Module:
    """Token ids [B, T], or with `input_dim` features [B, T, I] -> [B, T, D]."""
    if config.input_dim is None:
        return nn.Embedding(config.vocab_size, config.d_model)
    return nn.Linear(config.input_dim, config.d_model, bias=config.bias)


def check_inputs(
    inputs: Tensor, config: TransformerConfig, *, name: str = "inputs", past: int = 0
) -> None:
    """Refuses inputs that are not what a model takes.

    Args:
        inputs: what was given.
        config: the model's.
        name: what to call them.
        past: tokens of the same sequences that came before.

    Raises:
        ValueError: their shape or type is wrong, or they are too long.
    """
    width = config.input_dim
    wanted = "[B, T] token ids" if width is None else f"[B, T, {width}] floats"
    shape = tuple(inputs.shape)
    if width is None:
        fits = inputs.dim() == 2 and inputs.dtype in (torch.int32, torch.int64)
    else:
        fits = inputs.dim() == 3 and shape[2] == width and inputs.is_floating_point()
    if not fits:
        raise ValueError(f"{name} must be {wanted}, not {inputs.dtype} {list(shape)}")
    length = shape[1] + past
    if length > config.max_seq_len:
        raise ValueError(
            f"a sequence of {length} tokens is longer than max_seq_len={config.max_seq_len}; "
            "shorten it, or build the model with a larger max_seq_len"
        )


def check_mask(mask: Tensor | None, inputs: Tensor, name: str = "attention_mask") -> None:
    """Refuses a mask that does not fit its inputs.

    Raises:
        ValueError: its shape or type is wrong.
    """
    if mask is None:
        return
    shape = list(inputs.shape[:2])
    if list(mask.shape) != shape:
        raise ValueError(f"{name} must be {shape}, as the inputs are, not {list(mask.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool (True = a real position), not {mask.dtype}; use .bool()"
        )
