"""Position encodings.

A position part is built as `part(config, causal=...)`, one for each stack of layers, and may act in
three places: it adds vectors to the embedding, it rotates queries and keys, it adds a bias to the
scores. Each built-in part does one of them; see `Position`.

Rotary embedding: Su et al. 2021 (RoFormer), in the half-split layout of GPT-NeoX and Llama, where
element i of the first half of a head is paired with element i of its second half.

Letters: B batch, T query length, S key length, H heads, D model width, E head width, R rotated
    elements of a head.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig
from miniformer.model.rotary_scaling import scaled_inv_freq


class Rotation(NamedTuple):
    """cos and sin of each pair's angle, float32 [B or 1, 1, T, R/2]: the same for every head."""

    cos: Tensor
    sin: Tensor


class Position(nn.Module):
    """No position information; a causal mask still tells order (Haviv et al. 2022).

    The base of all position parts: each overrides what it does.
    """

    adds_bias = False  # whether `bias` gives one

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()

    def vectors(self, positions: Tensor) -> Tensor | None:
        """What is added to the embedding: int [B or 1, T] -> [B or 1, T, D]."""
        return None

    def rotation(
        self, positions: Tensor, *, length: Tensor, local: bool = False
    ) -> Rotation | None:
        """How queries and keys at these positions are turned.

        Args:
            positions: int [B or 1, T].
            length: tokens of the sequence that each belongs to, int [B or 1, T or 1]; with a
                cache, those that it will come to have (`KVCache.spans`).
            local: for a layer with a sliding window.
        """
        return None

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor | None:
        """What is added to the scores: int [B or 1, T], [B or 1, S] -> [B or 1, H, T, S]."""
        return None


class RotaryPosition(Position):
    """Turns pair i of each head by position * base ** (-2i / R): scores depend on distance only."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.dim, self.scaling = config.rotary_dim, config.rotary_scaling
        self.base = config.rotary_base
        self.base_local = config.rotary_base_local

    def rotation(self, positions: Tensor, *, length: Tensor, local: bool = False) -> Rotation:
        # A base of their own means that local layers were not stretched with the others.
        unscaled = local and self.base_local is not None
        base = self.base_local if unscaled and self.base_local is not None else self.base
        frequencies, factor = scaled_inv_freq(
            None if unscaled else self.scaling, base=base, dim=self.dim, seq_lens=length
        )  # [B or 1, T or 1, R/2]
        angle = positions[:, None, :, None].float() * frequencies[:, None]
        cos, sin = angle.cos(), angle.sin()  # [B, 1, T, R/2]
        if factor != 1.0:
            cos, sin = cos * factor, sin * factor
        return Rotation(cos, sin)


class LearnedPosition(Position):
    """A learnt vector for each position (GPT-2, BERT)."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.weight = nn.Parameter(torch.empty(config.max_seq_len, config.d_model))

    def vectors(self, positions: Tensor) -> Tensor:
        return self.weight[positions]


class SinusoidalPosition(Position):
    """sin and cos of position * 10000 ** (-2i / D) (Vaswani et al. 2017), sines first."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.width = config.d_model

    def vectors(self, positions: Tensor) -> Tensor:
        sines = (self.width + 1) // 2
        pair = torch.arange(sines, device=positions.device, dtype=torch.float32)
        angle = positions[..., None].float() * 10000.0 ** (-2 * pair / self.width)
        return torch.cat((angle.sin(), angle[..., : self.width - sines].cos()), -1)


class FairseqSinusoidalPosition(SinusoidalPosition):
    """Sines as fairseq has them (Ott et al. 2019): counted from 2, wavelengths up to 10000.

    Where D is odd the last element is zero.
    """

    def vectors(self, positions: Tensor) -> Tensor:
        half = self.width // 2
        pair = torch.arange(half, device=positions.device, dtype=torch.float32)
        rates = (pair * -(math.log(10000.0) / max(half - 1, 1))).exp()
        angle = (positions[..., None] + 2).float() * rates
        rest = angle.new_zeros(*angle.shape[:-1], self.width % 2)
        return torch.cat((angle.sin(), angle.cos(), rest), -1)


class ALiBiPosition(Position):
    """Scores fall with distance, at a slope of its own for each head (Press et al. 2021)."""

    adds_bias = True

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.slopes = alibi_slopes(config.n_heads)

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        slopes = torch.tensor(self.slopes, device=key_positions.device)  # [H]
        distance = (query_positions[:, :, None] - key_positions[:, None, :]).abs()  # [B, T, S]
        return -slopes[:, None, None] * distance[:, None]


def alibi_slopes(n_heads: int) -> list[float]:
    """A geometric series from 2 ** (-8 / n_heads); see Press et al. 2021, section 3.

    Where n_heads is no power of two: that of the next smaller power, then every second one of that
    of the next larger.
    """
    power = 2 ** int(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return slopes + between[: n_heads - power]


class RelativePosition(Position):
    """A learnt bias for each head and bucket of distances, shared by all layers (T5)."""

    adds_bias = True

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.num_buckets, self.max_distance = config.relative_buckets, config.relative_max_distance
        self.bidirectional = not causal
        self.weight = nn.Parameter(torch.empty(config.relative_buckets, config.n_heads))

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        ahead = key_positions[:, None, :] - query_positions[:, :, None]  # [B, T, S]
        return self.weight[self._bucket(ahead)].movedim(-1, 1)  # [B, T, S, H] -> [B, H, T, S]

    def _bucket(self, relative_position: Tensor) -> Tensor:
        """Near distances have a bucket each, farther ones share ever wider buckets."""
        buckets = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        distance = (
            relative_position.abs() if self.bidirectional else (-relative_position).clamp_min(0)
        )
        later = (relative_position > 0) * buckets * self.bidirectional
        near = buckets // 2
        share = (distance.clamp_min(1).float() / near).log() / math.log(self.max_distance / near)
        far = near + (share * (buckets - near)).long().clamp_max(buckets - near - 1)
        return later + torch.where(distance < near, distance, far)


def apply_rotary(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns the first R elements of each head of x, [B, H, T, E]; the others pass unchanged."""
    dim = 2 * rotation.cos.shape[-1]
    cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
    if dim == x.shape[-1]:
        out: Tensor = _ApplyRotary.apply(x, cos, sin)  # type: ignore[no-untyped-call]
        return out
    turned: Tensor = _ApplyRotary.apply(x[..., :dim], cos, sin)  # type: ignore[no-untyped-call]
    return torch.cat((turned, x[..., dim:]), -1)


def _rotate_half_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = torch.addcmul(first * cos, second, sin, value=-1)
    return torch.cat((turned, torch.addcmul(second * cos, first, sin)), -1)


class _ApplyRotary(torch.autograd.Function):
    """Its gradient is the rotation back, which is cheaper than going back through each step."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _rotate_half_pairs(x, cos, sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate_half_pairs(grad, cos, -sin), None, None
