"""Stretching rotary embeddings to texts longer than those of training.

`rotary_scaling` of a config names one of these; `factor` is how much longer texts become.

| type    | what it does                                                 | source                  |
|---------|--------------------------------------------------------------|-------------------------|
| linear  | positions are divided by the factor                          | Chen et al. 2023        |
| dynamic | past the original length the base grows with the text (NTK)  | Peng et al. 2023, 3.3   |
| yarn    | fast pairs stay, slow ones are divided, a ramp between them  | Peng et al. 2023        |
| longrope | each pair slowed by a factor of its own, others past the original length | Ding 2024 |
| llama3  | the same with limits in wavelengths, as Llama 3.1 has it     | Grattafiori et al. 2024 |

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
    """Angle of each pair for one position further, and by how much queries and keys lengthen.

    Args:
        scaling: the config's `rotary_scaling`; None: as Su et al. 2021 have it.
        base: wavelength base.
        dim: rotated elements R.
        length: tokens of the sequence that each token belongs to, int [B or 1, T or 1]; `dynamic`
            goes by it.

    Returns:
        float32 [B or 1, T or 1, R/2], and a factor on cos and sin.
    """
    pair = torch.arange(0, dim, 2, device=seq_lens.device, dtype=torch.float32)
    if scaling is None:
        return (base ** (-pair / dim))[None, None], 1.0
    given = {**ROTARY_SCALINGS[scaling["type"]], **scaling}
    factor = given["factor"]
    if given["type"] == "dynamic":
        original = given["original_max_seq_len"]
        seq_lens = seq_lens.clamp_min(original)
        stretched = base * (factor * seq_lens / original - (factor - 1)) ** (dim / (dim - 2))
        return stretched[..., None] ** (-pair / dim), 1.0
    frequencies = base ** (-pair / dim)
    if given["type"] == "longrope":
        short, long = (pair.new_tensor(given[name]) for name in ("short_factors", "long_factors"))
        is_long = (seq_lens > given["original_max_seq_len"])[..., None]
        return frequencies / torch.where(is_long, long, short), _longrope_attention_factor(given)
    if given["type"] == "linear":
        return (frequencies / factor)[None, None], 1.0
    if given["type"] == "llama3":
        return _llama3_inv_freq(frequencies, given)[None, None], 1.0
    return _yarn_inv_freq(frequencies, given, base=base, dim=dim)[
        None, None
    ], _yarn_attention_factor(given)


def _longrope_attention_factor(scaling: dict[str, Any]) -> float:
    """LongRoPE's temperature, taken into the length of queries and keys (Ding et al. 2024)."""
    usual = 1 + math.log(scaling["factor"]) / math.log(max(scaling["original_max_seq_len"], 2))
    return float(scaling["attention_factor"] or math.sqrt(usual))


def _llama3_inv_freq(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_seq_len"] * frequencies / (2 * math.pi)  # in the original length
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    share: Tensor = kept + (1 - kept) / scaling["factor"]
    return frequencies * share


def _yarn_inv_freq(
    frequencies: Tensor, scaling: dict[str, Any], *, base: float, dim: int
) -> Tensor:
    def find_correction_dim(turns: float) -> float:
        """The pair that turns so often in the original length."""
        wavelengths = scaling["original_max_seq_len"] / (turns * 2 * math.pi)
        return dim * math.log(wavelengths) / (2 * math.log(base))

    low = max(math.floor(find_correction_dim(scaling["beta_fast"])), 0)
    high = min(math.ceil(find_correction_dim(scaling["beta_slow"])), dim - 1)
    pair = torch.arange(dim // 2, device=frequencies.device, dtype=torch.float32)
    slowed = ((pair - low) / max(high - low, 1e-3)).clamp(0, 1)
    share: Tensor = 1 - slowed + slowed / scaling["factor"]
    return frequencies * share


def _yarn_attention_factor(scaling: dict[str, Any]) -> float:
    """YaRN's temperature, taken into the length of queries and keys (its section 3.4)."""
    return float(scaling["attention_factor"] or 0.1 * math.log(scaling["factor"]) + 1)
