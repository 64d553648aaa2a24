"""Rotary scaling: rotary embeddings for texts longer than those of training.

`rotary_scaling` of a config has one of these types; `factor` is the ratio of the lengths.

| type     | effect                                                    | source                  |
|----------|-----------------------------------------------------------|-------------------------|
| linear   | positions are divided by the factor                       | Chen et al. 2023        |
| dynamic  | the base grows with the text beyond the original length   | Peng et al. 2023, 3.3   |
| yarn     | slow pairs are divided, fast ones not, with a ramp        | Peng et al. 2023        |
| llama3   | like yarn, with limits in wavelengths (Llama 3.1)         | Grattafiori et al. 2024 |
| longrope | a factor for each pair, others beyond the original length | Ding et al. 2024        |

Letters: B batch, T query length, R rotated elements of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from miniformer.config.model_checks import ROTARY_SCALINGS


def scaled_inv_freq(
    scaling: dict[str, Any] | None, *, base: float, dim: int, seq_lens: Tensor
) -> tuple[Tensor, float]:
    """Returns the inverse frequency of each pair, and the attention factor.

    Args:
        scaling: the config's `rotary_scaling`; None: no scaling.
        base: wavelength base.
        dim: rotated elements R.
        seq_lens: length of the sequence of each token, int [B or 1, T or 1]; for `dynamic` and
            `longrope`.

    Returns:
        float32 [B or 1, T or 1, R/2], and a factor of cos and sin.
    """
    pair = torch.arange(0, dim, 2, device=seq_lens.device, dtype=torch.float32)
    if scaling is None:
        return (base ** (-pair / dim))[None, None], 1.0
    scaling = {**ROTARY_SCALINGS[scaling["type"]], **scaling}
    factor = scaling["factor"]
    if scaling["type"] == "dynamic":
        original = scaling["original_max_seq_len"]
        seq_lens = seq_lens.clamp_min(original)
        bases = base * (factor * seq_lens / original - (factor - 1)) ** (dim / (dim - 2))
        return bases[..., None] ** (-pair / dim), 1.0
    inv_freq = base ** (-pair / dim)
    if scaling["type"] == "longrope":
        short, long = (pair.new_tensor(scaling[name]) for name in ("short_factors", "long_factors"))
        is_long = (seq_lens > scaling["original_max_seq_len"])[..., None]
        # LongRoPE's temperature, as a factor of queries and keys (Ding et al. 2024).
        default = 1 + math.log(factor) / math.log(max(scaling["original_max_seq_len"], 2))
        attention_factor = float(scaling["attention_factor"] or math.sqrt(default))
        return inv_freq / torch.where(is_long, long, short), attention_factor
    if scaling["type"] == "linear":
        return (inv_freq / factor)[None, None], 1.0
    if scaling["type"] == "llama3":
        return _llama3_inv_freq(inv_freq, scaling)[None, None], 1.0
    inv_freq = _yarn_inv_freq(inv_freq, scaling, base=base, dim=dim)
    # YaRN's temperature, as a factor of queries and keys (its section 3.4).
    return inv_freq[None, None], float(scaling["attention_factor"] or 0.1 * math.log(factor) + 1)


def _llama3_inv_freq(inv_freq: Tensor, scaling: dict[str, Any]) -> Tensor:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = scaling["original_max_seq_len"] * inv_freq / (2 * math.pi)  # in original length
    unscaled = ((rotations - low) / (high - low)).clamp(0, 1)
    ratio: Tensor = unscaled + (1 - unscaled) / scaling["factor"]
    return inv_freq * ratio


def _yarn_inv_freq(inv_freq: Tensor, scaling: dict[str, Any], *, base: float, dim: int) -> Tensor:
    def find_correction_dim(num_rotations: float) -> float:
        """Returns the pair with this number of rotations in the original length."""
        wavelengths = scaling["original_max_seq_len"] / (num_rotations * 2 * math.pi)
        return dim * math.log(wavelengths) / (2 * math.log(base))

    low = max(math.floor(find_correction_dim(scaling["beta_fast"])), 0)
    high = min(math.ceil(find_correction_dim(scaling["beta_slow"])), dim - 1)
    pair = torch.arange(dim // 2, device=inv_freq.device, dtype=torch.float32)
    ramp = ((pair - low) / max(high - low, 1e-3)).clamp(0, 1)
    ratio: Tensor = 1 - ramp + ramp / scaling["factor"]
    return inv_freq * ratio
