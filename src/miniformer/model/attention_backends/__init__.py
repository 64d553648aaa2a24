"""Attention backends and their selection.

| backend | implementation                                      | supported on                   |
|---------|-----------------------------------------------------|--------------------------------|
| plain   | eager; the scores are in memory                     | everywhere, all options        |
| sdpa    | torch's fused attention (FlashAttention 2 on a GPU) | everywhere; no soft-cap        |
| flex    | torch's flex_attention (Dong et al. 2024)           | GPU; CPU without gradients     |
| varlen  | FlashAttention 2 over real tokens only, no padding  | GPU, half precision            |
| matmul  | batched matrix products; saves attention weights    | everywhere; plain softmax only |

Letters: B batch, T query length, S key length, H query heads, K key-value heads, E head width,
    N real tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer import registry
from miniformer.config import UserError
from miniformer.model.attention_backends import functions
from miniformer.model.attention_backends.functions import ScoreOptions
from miniformer.model.attention_backends.matmul import MAX_KEYS, additive_mask, matmul
from miniformer.model.masks import AttentionMask, Visibility, make_mask


class AttentionRequirements(NamedTuple):
    """Properties of an attention call that determine the supported backends."""

    device: str
    dtype: torch.dtype
    needs_grad: bool
    ragged: bool  # the batch has padding or packed segments, or the layer has a window
    cached: bool
    cross: bool
    num_keys: int  # S
    head_dim: int  # E
    softcap: bool
    sinks: bool
    bias: bool


# Attributes of newer torch versions.
_REQUIRED_ATTRIBUTES = {
    "flex": ("torch.nn.attention.flex_attention", "AuxRequest"),
    "varlen": ("torch.nn.attention.varlen", "varlen_attn"),
}


@cache
def _has_attribute(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def unsupported_reason(backend: str, requirements: AttentionRequirements) -> str | None:
    """Returns the reason why a backend cannot compute this attention; None: it can."""
    if backend == "sdpa" and requirements.softcap:
        return "torch's fused attention has no soft-cap"
    if backend == "flex":
        if requirements.device not in ("cpu", "cuda"):
            return f"flex_attention does not run on {requirements.device}"
        if requirements.device == "cpu" and requirements.needs_grad:
            return "flex_attention has no backward pass on a CPU"
        if requirements.cross:
            return "only self-attention is supported"
        if requirements.device == "cuda" and requirements.head_dim < 16:
            return f"flex_attention needs head_dim >= 16 on a GPU, not {requirements.head_dim}"
    if backend == "varlen":
        if requirements.device != "cuda":
            return "FlashAttention needs a CUDA device"
        if requirements.dtype not in (torch.float16, torch.bfloat16):
            return f"FlashAttention needs float16 or bfloat16, not {requirements.dtype}"
        if requirements.head_dim > 256:
            return f"FlashAttention needs head_dim <= 256, not {requirements.head_dim}"
        if requirements.cached or requirements.cross:
            return "only self-attention without a cache is supported"
    if backend in ("varlen", "matmul"):
        for name in ("softcap", "sinks", "bias"):
            if getattr(requirements, name):
                return f"{name} of the scores is not supported"
    if backend in _REQUIRED_ATTRIBUTES and not _has_attribute(*_REQUIRED_ATTRIBUTES[backend]):
        return f"torch {torch.__version__} has no {'.'.join(_REQUIRED_ATTRIBUTES[backend])}"
    return None


def check_backend_name(backend: str) -> None:
    """Raises UserError for an unknown backend; imports a registered one."""
    known = ["auto", *registry.names("attention_backend")]
    if backend not in known:
        raise UserError(registry.unknown_name_message("attention backend", backend, known))
    if backend not in ("auto", *BACKENDS):
        BACKENDS[backend] = registry.get("attention_backend", backend)


def select_backend(requested: str, requirements: AttentionRequirements) -> tuple[str, str]:
    """Returns the name of the backend, and the reason for it.

    Raises:
        UserError: the requested backend cannot compute this attention.
    """
    if requested != "auto":
        reason = unsupported_reason(requested, requirements)
        if reason is not None:
            raise UserError(f"attention backend {requested!r}: {reason}; use 'auto' or 'plain'")
        return requested, "requested"
    # Gathering the real tokens reads their number; a compiled graph cannot.
    if (
        requirements.ragged
        and not torch.compiler.is_compiling()
        and unsupported_reason("varlen", requirements) is None
    ):
        return "varlen", "FlashAttention over real tokens and within windows only"
    reason = unsupported_reason("sdpa", requirements)
    if reason is not None:
        if requirements.device == "cuda" and unsupported_reason("flex", requirements) is None:
            return "flex", f"{reason}; flex_attention fuses it"
        return "plain", reason
    half = requirements.dtype in (torch.float16, torch.bfloat16)
    if (
        half
        and requirements.device == "cpu"
        and requirements.needs_grad
        and requirements.num_keys <= MAX_KEYS
        and unsupported_reason("matmul", requirements) is None
    ):
        return "matmul", "faster backward than torch's fused attention at this length and type"
    flash = half and requirements.device == "cuda"
    if flash and not (requirements.ragged or requirements.bias or requirements.sinks):
        return "sdpa", "torch's fused attention, as FlashAttention"
    return "sdpa", "torch's fused attention"


def prepare(
    backend: str,
    visibility: Visibility,
    scores: ScoreOptions,
    *,
    batch_size: int,
    dtype: torch.dtype,
) -> Any:
    """Makes a backend's form of a mask, once for all layers that share it.

    `dtype` is the type of the matrix products.
    """
    if backend == "varlen":
        return functions.pack(visibility, batch_size)
    if backend == "flex":
        return visibility
    explicit = backend != "sdpa" or scores.bias is not None or scores.sinks is not None
    return prepare_mask(backend, make_mask(visibility, explicit=explicit), dtype)


def prepare_mask(backend: str, mask: AttentionMask, dtype: torch.dtype) -> Any:
    """Makes a backend's form of an explicit mask, one that has only `allowed`."""
    return additive_mask(mask, dtype) if backend == "matmul" else mask


# Scaled dot-product attention: `(q, k, v, mask, scores)` -> [B, H, T, E], with
#   q       queries, [B, H, T, E]
#   k, v    keys and values, [B, K, S, E]; K divides H, and key-value head j serves query heads
#           j*H/K to (j+1)*H/K - 1
#   mask    from `prepare`; a fully masked query gets zeros
#   scores  `ScoreOptions`
BACKENDS: dict[str, Callable[..., Tensor]] = {
    "plain": functions.plain,
    "sdpa": functions.sdpa,
    "flex": functions.flex,
    "varlen": functions.varlen,
    "matmul": matmul,
}
