"""Input embedding, and checks of a model's inputs.

Letters: B batch, T length, D model width, I feature width.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig

if TYPE_CHECKING:
    from miniformer.model.cache.protocol import PassCache


def make_embedding(config: TransformerConfig) -> nn.Module:
    """Builds the embedding of token ids [B, T], or with `input_dim` of features [B, T, I]."""
    if config.input_dim is None:
        return nn.Embedding(config.vocab_size, config.d_model)
    return nn.Linear(config.input_dim, config.d_model, bias=config.bias)


def check_inputs(
    inputs: Tensor,
    config: TransformerConfig,
    *,
    name: str = "inputs",
    cache: PassCache | None = None,
) -> None:
    """Raises a ValueError for inputs of the wrong type or shape, or too long.

    `name` is that of the inputs in messages; `cache` holds earlier tokens of the same sequences.
    """
    width = config.input_dim
    shape = tuple(inputs.shape)
    if width is None:
        valid = inputs.dim() == 2 and inputs.dtype in (torch.int32, torch.int64)
    else:
        valid = inputs.dim() == 3 and shape[2] == width and inputs.is_floating_point()
    if not valid:
        expected = "[B, T] token ids" if width is None else f"[B, T, {width}] floats"
        raise ValueError(f"{name} must be {expected}, not {inputs.dtype} {list(shape)}")
    length = shape[1] + (0 if cache is None else cache.length)
    if length > config.max_seq_len and cache is not None and shape[0]:
        # A row has fewer tokens than columns if it has padding or was trimmed.
        length = shape[1] + int(cache.lengths.max())
    if length > config.max_seq_len:
        raise ValueError(
            f"a sequence of {length} tokens is longer than max_seq_len={config.max_seq_len}; "
            "shorten it, or build the model with a larger max_seq_len"
        )


def check_mask(mask: Tensor | None, inputs: Tensor, name: str = "attention_mask") -> None:
    """Raises a ValueError for a mask of the wrong type or shape."""
    if mask is None:
        return
    shape = list(inputs.shape[:2])
    if list(mask.shape) != shape:
        raise ValueError(f"{name} must be {shape}, as the inputs are, not {list(mask.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool (True = a real position), not {mask.dtype}; use .bool()"
        )


def check_segments(segment_ids: Tensor | None, inputs: Tensor, cache: PassCache | None) -> None:
    """Checks segment ids.

    Raises:
        ValueError: the shape or type is wrong, an id is below 0 (checked on a CPU only: on a GPU
            the check would synchronize), or there is a cache.
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
            f"segment_ids must be integers (0 is padding), not {dtype}; pass a mask of the real "
            "tokens as attention_mask"
        )
    if segment_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        negative = False
        with contextlib.suppress(RuntimeError):  # tensors have no values inside torch.func
            negative = bool((segment_ids < 0).any())
        if negative:
            raise ValueError(
                f"segment_ids must be at least 0, not {int(segment_ids.min())}; 0 is padding"
            )
    if cache is not None:
        raise ValueError("segment_ids and cache exclude each other: a cache row holds one sequence")
