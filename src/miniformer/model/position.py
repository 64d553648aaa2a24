"""Position encodings.

A position encoding is built as `position(config, causal=...)`, one for each stack. It can add
vectors to the embedding, rotate queries and keys, and add a bias to the scores. Each built-in
encoding does one of them; see `Position`.

Rotary embedding: Su et al. 2021 (RoFormer), in the half-split layout of GPT-NeoX and Llama, where
element i of the first half of a head is paired with element i of its second half.

Letters: B batch, T query length, S key length, H heads, D model width, E head width, R rotated
    elements of a head.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig
from miniformer.model.rotary_scaling import scaled_inv_freq

if TYPE_CHECKING:
    from miniformer.model.cache.protocol import PassCache


class Rotation(NamedTuple):
    """cos and sin of each pair's angle, float32 [B or 1, 1, T, R/2], for all heads."""

    cos: Tensor
    sin: Tensor


class Position(nn.Module):
    """No position encoding; a causal mask still implies order (Haviv et al. 2022).

    Base class of all position encodings.
    """

    adds_bias = False  # True if `bias` returns a tensor

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()

    def vectors(self, positions: Tensor) -> Tensor | None:
        """Returns a term of the embedding: int [B or 1, T] -> [B or 1, T, D]; None: none."""
        return None

    def rotation(
        self, positions: Tensor, *, length: Tensor, local: bool = False
    ) -> Rotation | None:
        """Returns the rotation of queries and keys at these positions; None: none.

        Args:
            positions: int [B or 1, T].
            length: length of the sequence of each token, int [B or 1, T or 1]; with a cache, its
                final length (`PassCache.final_lengths`).
            local: True for a layer with a sliding window.
        """
        return None

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor | None:
        """Returns a term of the scores: int [B or 1, T], [B or 1, S] -> [B or 1, H, T, S]."""
        return None


class RotaryPosition(Position):
    """Rotates pair i of each head by position * base ** (-2i / R); scores depend on distance."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.dim, self.scaling = config.rotary_dim, config.rotary_scaling
        self.base = config.rotary_base
        self.base_local = config.rotary_base_local

    def rotation(self, positions: Tensor, *, length: Tensor, local: bool = False) -> Rotation:
        # Local layers with their own base are not scaled.
        base, scaling = self.base, self.scaling
        if local and self.base_local is not None:
            base, scaling = self.base_local, None
        inv_freq, factor = scaled_inv_freq(
            scaling, base=base, dim=self.dim, seq_lens=length
        )  # [B or 1, T or 1, R/2]
        angle = positions[:, None, :, None].float() * inv_freq[:, None]
        cos, sin = angle.cos(), angle.sin()  # [B, 1, T, R/2]
        if factor != 1.0:
            cos, sin = cos * factor, sin * factor
        return Rotation(cos, sin)


class LearnedPosition(Position):
    """Learned vector for each position (GPT-2, BERT)."""

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
        num_sines = (self.width + 1) // 2
        pair = torch.arange(num_sines, device=positions.device, dtype=torch.float32)
        angle = positions[..., None].float() * 10000.0 ** (-2 * pair / self.width)
        return torch.cat((angle.sin(), angle[..., : self.width - num_sines].cos()), -1)


class FairseqSinusoidalPosition(SinusoidalPosition):
    """Sinusoidal positions of fairseq (Ott et al. 2019): from 2, wavelengths up to 10000.

    The last element is zero if D is odd.
    """

    def vectors(self, positions: Tensor) -> Tensor:
        half = self.width // 2
        pair = torch.arange(half, device=positions.device, dtype=torch.float32)
        inv_freq = (pair * -(math.log(10000.0) / max(half - 1, 1))).exp()
        angle = (positions[..., None] + 2).float() * inv_freq
        padding = angle.new_zeros(*angle.shape[:-1], self.width % 2)
        return torch.cat((angle.sin(), angle.cos(), padding), -1)


class ALiBiPosition(Position):
    """Bias of -slope * distance, with a slope for each head (Press et al. 2021)."""

    adds_bias = True

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.slopes = alibi_slopes(config.n_heads)

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        slopes = torch.tensor(self.slopes, device=key_positions.device)  # [H]
        distance = (query_positions[:, :, None] - key_positions[:, None, :]).abs()  # [B, T, S]
        return -slopes[:, None, None] * distance[:, None]


def alibi_slopes(n_heads: int) -> list[float]:
    """Returns a geometric series from 2 ** (-8 / n_heads); see Press et al. 2021, section 3.

    If n_heads is not a power of two: the series of the next smaller power, then every second
    element of the series of the next larger power.
    """
    power = 2 ** int(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return slopes + between[: n_heads - power]


class RelativePosition(Position):
    """Learned bias for each head and bucket of distances, shared by all layers (T5)."""

    adds_bias = True

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.num_buckets, self.max_distance = config.relative_buckets, config.relative_max_distance
        self.bidirectional = not causal
        self.weight = nn.Parameter(torch.empty(config.relative_buckets, config.n_heads))

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        relative_position = key_positions[:, None, :] - query_positions[:, :, None]  # [B, T, S]
        bias = self.weight[self._bucket(relative_position)]  # [B, T, S, H]
        return bias.movedim(-1, 1)  # [B, H, T, S]

    def _bucket(self, relative_position: Tensor) -> Tensor:
        """Returns bucket indices: one for each near distance, logarithmic for far distances."""
        buckets = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        distance = (
            relative_position.abs() if self.bidirectional else (-relative_position).clamp_min(0)
        )
        direction = (relative_position > 0) * buckets * self.bidirectional
        near = buckets // 2
        ratio = (distance.clamp_min(1).float() / near).log() / math.log(self.max_distance / near)
        far = near + (ratio * (buckets - near)).long().clamp_max(buckets - near - 1)
        return direction + torch.where(distance < near, distance, far)


def apply_rotary(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates the first R elements of each head of x, [B, H, T, E]; the others are unchanged."""
    dim = 2 * rotation.cos.shape[-1]
    cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
    if dim == x.shape[-1]:
        out: Tensor = _ApplyRotary.apply(x, cos, sin)  # type: ignore[no-untyped-call]
        return out
    rotated: Tensor = _ApplyRotary.apply(x[..., :dim], cos, sin)  # type: ignore[no-untyped-call]
    return torch.cat((rotated, x[..., dim:]), -1)


def _rotate_half_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    rotated = torch.addcmul(first * cos, second, sin, value=-1)
    return torch.cat((rotated, torch.addcmul(second * cos, first, sin)), -1)


class _ApplyRotary(torch.autograd.Function):
    """Rotation whose gradient is the inverse rotation, cheaper than autograd."""

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


def check_positions(
    positions: Tensor, x: Tensor, encoding: Position, cache: PassCache | None
) -> None:
    """Checks positions that a caller gives.

    Args:
        positions: int [B, T].
        x: embedded inputs, [B, T, D].
        encoding: the position encoding.
        cache: keys and values of earlier tokens.

    Raises:
        ValueError: the shape or type is wrong; a position is below 0, or beyond the learned ones
            (checked on a CPU only: on a GPU the check would synchronize); or there is a cache, and
            a bias of the scores, which would need the positions of the cached keys, too.
    """
    shape = list(x.shape[:2])
    if list(positions.shape) != shape or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"positions must be integers {shape}, as the inputs are, not {positions.dtype} "
            f"{list(positions.shape)}"
        )
    if cache is not None and encoding.adds_bias:
        raise ValueError(
            f"positions and cache exclude each other with {type(encoding).__name__}: its bias "
            "needs the positions of cached keys, which the cache derives from masks"
        )
    if positions.device.type != "cpu" or not positions.numel() or torch.compiler.is_compiling():
        return
    limit = len(encoding.weight) if isinstance(encoding, LearnedPosition) else math.inf
    with contextlib.suppress(RuntimeError):  # tensors have no values inside torch.func
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= limit:
            bound = "" if math.isinf(limit) else f" and below max_seq_len={limit}"
            raise ValueError(f"positions must be at least 0{bound}; found {low} to {high}")
