"""Stored types: integers with a scale for a group of weights of a row, short floats, tables.

Scales have 17 significant bits, so the product with an integer of 8 bits is exact in float32. So
rounding a decoded matrix again in the same groups (by the decoding kernels, a quantized base or a
second save) gives the same integers and scales.

Letters: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

GROUP = 32  # columns per scale of the decoding kernels, and the default
_LARGEST = 127
_DROPPED_BITS = 7  # of the 24 significant bits of a scale
_SMALLEST_SCALE = 2.0**-100  # below it weights are zero; products stay exact far above denormals
# Integers to which the extreme of a group is mapped, of 4 bits; those of the decoding kernels.
_LEVELS = (-8.0, -7.6, -7.2, -6.8, 7.0)
_FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
INTEGER_FORMS = {"uint8": torch.uint8, "int16": torch.int16}  # of tables


class Integers:
    """The type `integers`: 8 or 4 bits, with a scale for `group` weights of a row, G below."""

    @staticmethod
    def encode(weight: Tensor, bits: int, group: int = GROUP) -> dict[str, Tensor]:
        """Rounds a matrix.

        Args:
            weight: [O, I]; I is a multiple of G.
            bits: 8 or 4.
            group: G, a multiple of 32.

        Returns:
            `scales`, float32 [O, I / G]; `values`, int8 [O, I], or for 4 bits uint8 [O, I / 2]:
            the integers + 8 of 2 columns, the first one in the low bits.
        """
        groups = weight.detach().float().reshape(len(weight), -1, group)
        if bits == 8:
            values, scales = _round8(groups)
            return {"values": values.to(torch.int8).flatten(1), "scales": scales[..., 0]}
        values, scales = _round4(groups)
        # The same weights can have several forms; rounding them again gives the one to keep.
        values, scales = _round4(values * scales)
        pairs = (values + 8).to(torch.uint8).flatten(1)
        return {"values": pairs[:, ::2] | pairs[:, 1::2] << 4, "scales": scales[..., 0]}

    @staticmethod
    def shape(tensors: dict[str, Tensor], bits: int, group: int = GROUP) -> tuple[int, int]:
        """The shape of the matrix, (O, I).

        Raises:
            ValueError: an option is invalid, or the tensors have other types or shapes than those
                of `encode`.
        """
        values, scales = tensors["values"], tensors["scales"]
        expected = {8: torch.int8, 4: torch.uint8}.get(bits)
        if expected is None:
            raise ValueError(f"bits must be 8 or 4, not {bits!r}")
        if type(group) is not int or group < GROUP or group % GROUP:
            raise ValueError(f"group must be a multiple of {GROUP}, not {group!r}")
        if (values.dtype, scales.dtype) != (expected, torch.float32):
            raise ValueError(f"values are {values.dtype} and scales {scales.dtype}")
        per_group = group * bits // 8
        if values.dim() != 2 or scales.dim() != 2 or values.shape != (
            scales.shape[0], scales.shape[1] * per_group
        ):  # fmt: skip
            raise ValueError(
                f"values {tuple(values.shape)} do not fit scales {tuple(scales.shape)}"
            )
        return scales.shape[0], scales.shape[1] * group

    @classmethod
    def decode(cls, tensors: dict[str, Tensor], bits: int, group: int = GROUP) -> Tensor:
        """The matrix, float32 [O, I]; the inverse of `encode`.

        Raises:
            ValueError: the tensors have other types or shapes than those of `encode`.
        """
        cls.shape(tensors, bits, group)
        values, scales = tensors["values"], tensors["scales"]
        # Made before the temporary tensors, so that these are not between the matrices in memory.
        weight = torch.empty(len(scales), scales.shape[1] * group, device=scales.device)
        if bits == 4:
            half = values >> 4
            weight[:, 1::2] = half
            weight[:, ::2] = torch.bitwise_and(values, 15, out=half)
            weight -= 8
        else:
            weight.copy_(values)
        weight.view(*scales.shape, group).mul_(scales[..., None])
        return weight


class ShortFloat:
    """The type `short_float`: bf16 or fp16."""

    @staticmethod
    def encode(weight: Tensor, form: str) -> dict[str, Tensor]:
        """Rounds a matrix to the nearest short float."""
        return {"values": weight.detach().to(_FLOATS[form])}

    @staticmethod
    def decode(tensors: dict[str, Tensor], form: str) -> Tensor:
        """The matrix in its stored type.

        Raises:
            ValueError: the form is unknown, or the tensor has another type.
        """
        return _stored_values(tensors, form, _FLOATS)


class ShortIntegers:
    """The type `short_integers`: tables of integers, such as characters, in fewer bytes."""

    @staticmethod
    def encode(weight: Tensor, form: str) -> dict[str, Tensor]:
        """The same integers in another type, which has to hold them."""
        return {"values": weight.to(INTEGER_FORMS[form])}

    @staticmethod
    def decode(tensors: dict[str, Tensor], form: str) -> Tensor:
        """The integers in their stored type.

        Raises:
            ValueError: the form is unknown, or the tensor has another type.
        """
        return _stored_values(tensors, form, INTEGER_FORMS)


def _stored_values(
    tensors: dict[str, Tensor], form: str, dtypes: Mapping[str, torch.dtype]
) -> Tensor:
    """The tensor `values`, which has the type of its form."""
    if form not in dtypes:
        raise ValueError(f"form must be one of {', '.join(dtypes)}, not {form!r}")
    if tensors["values"].dtype != dtypes[form]:
        raise ValueError(f"values are {tensors['values'].dtype}, not {form}")
    return tensors["values"]


def integer_range(bits: int) -> tuple[int, int, int]:
    """Lowest and highest integer, and the least magnitude of one of each group."""
    return (-_LARGEST, _LARGEST, _LARGEST) if bits == 8 else (-8, 7, 7)


def candidate_scales(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales that are tried for groups of weights.

    Args:
        groups: float32 [..., G].
        bits: 8 or 4.

    Returns:
        The scales, [C, ..., 1]; and the integer of the weight of the largest magnitude, [C], with 8
        bits that of its magnitude.
    """
    if bits == 8:
        scales = _short_scales(groups.abs().amax(-1, keepdim=True) / _LARGEST)[None]
        return scales, scales.new_tensor([_LARGEST])
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    levels = extreme.new_tensor(_LEVELS)
    scales = torch.stack([_short_scales(extreme / level) for level in _LEVELS])
    return scales, levels.round()


def _round8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Integers from -127 to 127, and scales [..., 1], of groups of weights."""
    scales = candidate_scales(groups, 8)[0][0]
    return _integers(groups, scales, -_LARGEST, _LARGEST), scales


def _round4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Integers from -8 to 7, and of several scales those with the least squared error."""
    best: tuple[Tensor, Tensor] | None = None
    least = groups.new_full((*groups.shape[:-1], 1), torch.inf)
    for scales in candidate_scales(groups, 4)[0]:
        values = _integers(groups, scales, -8, 7)
        error = (groups - values * scales).square().sum(-1, keepdim=True)
        if best is not None:
            better = error < least
            values = torch.where(better, values, best[0])
            scales = torch.where(better, scales, best[1])
        best, least = (values, scales), torch.minimum(error, least)
    assert best is not None
    return best


def _integers(groups: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    values = torch.where(scales == 0, 0.0, groups / scales)
    return values.round().clamp(low, high) + 0.0  # without negative zeros


def _short_scales(scales: Tensor) -> Tensor:
    """Scales, rounded to 17 significant bits."""
    half = 1 << (_DROPPED_BITS - 1)
    bits = (scales.contiguous().view(torch.int32) + half) & -(1 << _DROPPED_BITS)
    return torch.where(scales.abs() < _SMALLEST_SCALE, 0.0, bits.view(torch.float32))
