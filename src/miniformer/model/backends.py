"""How attention is computed: the backends there are, and the choice among them.

| backend | what it is                                          | where                          |
|---------|-----------------------------------------------------|--------------------------------|
| plain   | written out, scores in memory                       | everywhere, everything         |
| sdpa    | torch's fused attention (FlashAttention 2 on a GPU) | everywhere; no soft-cap        |
| flex    | torch's flex_attention (Dong et al. 2024)           | GPU; CPU without gradients     |
| varlen  | FlashAttention 2 over real tokens only, no padding  | GPU, half precision            |
| matmul  | batched matrix products, shares kept for backward   | everywhere; a plain softmax    |

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
from miniformer.model import kernels
from miniformer.model.kernels import Scores
from miniformer.model.masks import AttentionMask, Visibility, make_mask
from miniformer.model.matmul_attention import LONGEST, added_mask


class Call(NamedTuple):
    """What decides which backends can compute an attention."""

    device: str
    dtype: torch.dtype
    grad: bool  # gradients are wanted
    ragged: bool  # there is padding, several segments in a row, or a window
    cached: bool
    cross: bool
    keys: int  # S
    width: int  # E
    softcap: bool
    sinks: bool
    bias: bool


# What newer torch versions have.
_MODULES = {
    "flex": ("torch.nn.attention.flex_attention", "AuxRequest"),
    "varlen": ("torch.nn.attention.varlen", "varlen_attn"),
}


@cache
def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def why_not(backend: str, call: Call) -> str | None:
    """Why a backend cannot compute this attention; None: it can."""
    if backend == "sdpa" and call.softcap:
        return "torch's fused attention has no soft-cap"
    if backend == "flex":
        if call.device not in ("cpu", "cuda"):
            return f"flex_attention does not run on {call.device}"
        if call.device == "cpu" and call.grad:
            return "flex_attention has no backward pass on a CPU"
        if call.cross:
            return "it is wired for self-attention only"
        if call.device == "cuda" and call.width < 16:
            return f"flex_attention needs heads of 16 numbers on a GPU, not {call.width}"
    if backend == "varlen":
        if call.device != "cuda":
            return "FlashAttention needs a CUDA device"
        if call.dtype not in (torch.float16, torch.bfloat16):
            return f"FlashAttention needs float16 or bfloat16, not {call.dtype}"
        if call.width > 256:
            return f"FlashAttention has heads of 256 numbers at most, not {call.width}"
        if call.cached or call.cross:
            return "it is wired for full passes of self-attention"
        for name in ("softcap", "sinks", "bias"):
            if getattr(call, name):
                return f"FlashAttention has no {name} of the scores"
    if backend == "matmul":
        for name in ("softcap", "sinks", "bias"):
            if getattr(call, name):
                return f"it has no {name} of the scores"
    if backend in _MODULES and not _has(*_MODULES[backend]):
        return f"torch {torch.__version__} has no {'.'.join(_MODULES[backend])}"
    return None


def check_name(backend: str) -> None:
    """Raises UserError for a backend that does not exist."""
    if backend not in ("auto", *BACKENDS):
        raise UserError(registry.unknown("attention backend", backend, ["auto", *BACKENDS]))


def choose(wanted: str, call: Call) -> tuple[str, str]:
    """The backend to use, and why.

    Raises:
        UserError: the one that was asked for cannot compute this attention.
    """
    if wanted != "auto":
        reason = why_not(wanted, call)
        if reason is not None:
            raise UserError(f"attention backend {wanted!r}: {reason}; use 'auto' or 'plain'")
        return wanted, "asked for"
    # Gathering the real tokens reads their number, which a compiled graph cannot.
    if call.ragged and not torch.compiler.is_compiling() and why_not("varlen", call) is None:
        return "varlen", "FlashAttention over real tokens and within windows only"
    if why_not("sdpa", call) is not None:
        if call.device == "cuda" and why_not("flex", call) is None:
            return "flex", f"{why_not('sdpa', call)}; flex_attention fuses it"
        return "plain", f"{why_not('sdpa', call)}"
    half_on_cpu = call.device == "cpu" and call.dtype in (torch.float16, torch.bfloat16)
    if half_on_cpu and call.grad and call.keys <= LONGEST and why_not("matmul", call) is None:
        return "matmul", "faster backward than torch's fused attention at this length and type"
    flash = call.device == "cuda" and call.dtype in (torch.float16, torch.bfloat16)
    if flash and not (call.ragged or call.bias or call.sinks):
        return "sdpa", "torch's fused attention, as FlashAttention"
    return "sdpa", "torch's fused attention"


def prepare(
    backend: str, seen: Visibility, scores: Scores, *, rows: int, dtype: torch.dtype
) -> Any:
    """What a backend needs to know of a mask, made once for all layers that share it.

    Args:
        backend: which one.
        seen: who may attend to whom.
        scores: what becomes of the scores.
        rows: number B of rows.
        dtype: type of the products.
    """
    if backend == "varlen":
        return kernels.pack(seen, rows)
    if backend == "flex":
        return seen
    explicit = backend != "sdpa" or scores.bias is not None or scores.sinks is not None
    return prepare_mask(backend, make_mask(seen, explicit=explicit), dtype)


def prepare_mask(backend: str, mask: AttentionMask, dtype: torch.dtype) -> Any:
    """The same for a mask that is written out already, in `allowed` only."""
    return added_mask(mask, dtype) if backend == "matmul" else mask


def attend(backend: str, q: Tensor, k: Tensor, v: Tensor, mask: Any, scores: Scores) -> Tensor:
    """Scaled dot-product attention.

    Args:
        backend: which one computes it.
        q: queries, [B, H, T, E].
        k: keys, [B, K, S, E]; K divides H, and key-value head j serves query heads j*H/K to
            (j+1)*H/K - 1.
        v: values, [B, K, S, E].
        mask: from `prepare`; a query that may attend to nothing gets zeros.
        scores: what becomes of the scores.

    Returns:
        [B, H, T, E].
    """
    return BACKENDS[backend](q, k, v, mask, scores)


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "plain": kernels.plain,
    "sdpa": kernels.sdpa,
    "flex": kernels.flex,
    "varlen": kernels.varlen,
    "matmul": kernels.matmul,
}
