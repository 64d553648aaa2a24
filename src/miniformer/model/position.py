"""Position encodings.

A position part is built from the config and maps positions, int [B or 1, T], to what attention
needs. Rotary embedding: Su et al. 2021 (RoFormer), in the half-split layout of GPT-NeoX and Llama,
where element i of the first half of a head is paired with element i of its second half.

Letters: B batch, T length, H heads, E head width, R rotated elements of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig


class Rotation(NamedTuple):
    """cos and signed sin of each angle, float32 [B or 1, 1, T, R]: the same for every head."""

    cos: Tensor
    sin: Tensor


class RotaryPosition(nn.Module):
    """Turns pair i of each head by position * base ** (-2i / R): scores depend on distance only."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.base, self.dim = config.rotary_base, config.rotary_dim

    def forward(self, positions: Tensor) -> Rotation:
        pair = torch.arange(0, self.dim, 2, device=positions.device, dtype=torch.float32)
        frequency = self.base ** (-pair / self.dim)  # [R/2]
        angle = positions[:, None, :, None].float() * frequency  # [B, T] -> [B, 1, T, R/2]
        cos, sin = angle.cos(), angle.sin()
        return Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


class NoPosition(nn.Module):
    """No position information; a causal mask still tells order (Haviv et al. 2022)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, positions: Tensor) -> None:
        return None


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns the first R elements of each head of x, [B, H, T, E]; the others pass unchanged."""
    dim = rotation.cos.shape[-1]
    turned, rest = x[..., :dim], x[..., dim:]
    # Swapping the halves, with the sign already in sin, is the 2-d rotation of every pair at once.
    turned = turned * rotation.cos + turned.roll(dim // 2, -1) * rotation.sin
    return torch.cat((turned.to(x.dtype), rest), -1) if rest.shape[-1] else turned.to(x.dtype)
