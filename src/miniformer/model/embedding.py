"""Inputs to vectors: token ids or features, and token types.

Letters: B batch, T length, D model width, I feature width.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig

if TYPE_CHECKING:
    from miniformer.model.cache.kv_cache import KVCache


def make_embedding(config: TransformerConfig) -> nn.Module:
    """Token ids [B, T], or with `input_dim` features [B, T, I] -> [B, T, D]."""
    if config.input_dim is None:
        return nn.Embedding(config.vocab_size, config.d_model)
    return nn.Linear(config.input_dim, config.d_model, bias=config.bias)


def check_inputs(
    inputs: Tensor,
    config: TransformerConfig,
    *,
    name: str = "inputs",
    cache: KVCache | None = None,
) -> None:
    """Refuses inputs that are not what a model takes.

    Args:
        inputs: what was given.
        config: the model's.
        name: what to call them.
        cache: tokens of the same sequences that came before.

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
    length = shape[1] + (0 if cache is None else cache.length)
    if length > config.max_seq_len and cache is not None and shape[0]:
        # Columns are more than tokens where rows have padding or were cut back.
        length = shape[1] + int(cache.lengths.max())
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


def check_segments(segment_ids: Tensor | None, inputs: Tensor, cache: KVCache | None) -> None:
    """Refuses segment ids that do not fit their inputs.

    Raises:
        ValueError: their shape or type is wrong, one is below 0 (which is looked for on a CPU only:
            elsewhere the answer would have to be waited for), or there is a cache.
    """
    if segment_ids is None:
        return
    shape, dtype = list(inputs.shape[:2]), segment_ids.dtype
    if list(segment_ids.shape) != shape:
        raise ValueError(
            f"segment_ids must be {shape}, as the inputs are, not {list(segment_ids.shape)}"
        )
    if dtype == torch.bool or dtype.is_floating_point or dtype.is_complex:
        raise ValueError(
            f"segment_ids must be integers (0 is padding), not {dtype}; which tokens are real is "
            "told by attention_mask"
        )
    if segment_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        negative = False
        with contextlib.suppress(RuntimeError):  # within torch.func there is nothing to look at
            negative = bool((segment_ids < 0).any())
        if negative:
            raise ValueError(
                f"segment_ids must be at least 0, not {int(segment_ids.min())}; 0 is padding"
            )
    if cache is not None:
        raise ValueError("segment_ids and cache exclude each other: a cache row holds one sequence")
