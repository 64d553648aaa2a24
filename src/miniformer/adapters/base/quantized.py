"""A quantized base (QLoRA, Dettmers et al. 2023): integers, with a scale for 32 weights of a row.

The groups are those of the decoding kernels, which read the same integers. Gradients go through the
weights to the inputs; a float matrix exists only during a product.

Letters: O outputs, I inputs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from miniformer.adapters.modules import AdaptedMatrix
from miniformer.config import UserError
from miniformer.model.matrices import weight_matrices
from miniformer.model.ops.products import is_plain_linear, linear
from miniformer.runtime.native.weight_layout import quantize_int4

GROUP = 32  # columns per scale, as in the kernels
_LARGEST = 127
Model = TypeVar("Model", bound=nn.Module)


class QuantizedLinear(nn.Module):
    """A linear map with frozen integer weights.

    Args:
        weight: [O, I]; I is a multiple of 32.
        bias: [O] or None.
        bits: 8 or 4.

    Attributes:
        values: int8 [O, I]; or two values of 4 bits in a byte, uint8 [O, I / 8, 4].
        scales: [O, I / 32].
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, bits: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bits = bits
        values, scales = quantize_int8(weight) if bits == 8 else quantize_int4(weight, GROUP)
        self.values: Tensor
        self.scales: Tensor
        self.register_buffer("values", values)
        self.register_buffer("scales", scales.to(weight.dtype))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    @staticmethod
    def adapted_class() -> type[AdaptedMatrix]:
        """The class of the module with adapters."""
        return AdaptedQuantizedLinear

    def effective_weight(self) -> Tensor:
        """The weight that is applied, [O, I]."""
        return dequantize(self.values, self.scales, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return quantized_linear(self, x, self.bias)


class AdaptedQuantizedLinear(AdaptedMatrix, QuantizedLinear):  # type: ignore[misc]
    """`QuantizedLinear` with adapters."""

    def base_weight(self) -> Tensor:
        """See `AdaptedMatrix`."""
        return dequantize(self.values, self.scales, self.bits)

    def base_product(self, x: Tensor) -> Tensor:
        """See `AdaptedMatrix`."""
        return quantized_linear(self, x, None)

    def base_forward(self, x: Tensor) -> Tensor:
        """See `AdaptedMatrix`."""
        return quantized_linear(self, x, self.base_bias())


class _Product(torch.autograd.Function):
    """x @ weight.T; the backward pass makes the float weight again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scales: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(values, scales)
        ctx.bits = bits
        return linear(x, dequantize(values, scales, bits).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, scales = ctx.saved_tensors
        grad = grads[0]
        return grad @ dequantize(values, scales, ctx.bits).to(grad.dtype), None, None, None


def quantized_linear(module: QuantizedLinear, x: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias, with gradients to x and to the bias."""
    values, scales, bits = module.values, module.scales, module.bits
    out: Tensor = _Product.apply(x, values, scales, bits)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values from -127 to 127, int8 [O, I], and scales, [O, I / 32]."""
    groups = weight.detach().float().view(len(weight), -1, GROUP)
    scales = groups.abs().amax(2) / _LARGEST
    values = (groups / scales[..., None]).nan_to_num().round().to(torch.int8)
    return values.flatten(1), scales


def dequantize(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The weight, [O, I], of the type of the scales; see `QuantizedLinear`."""
    if bits == 4:
        bytes_of_eight = values.view(len(values), -1, 1, 4)
        values = torch.cat((bytes_of_eight & 15, bytes_of_eight >> 4), 2).flatten(1).to(torch.int8)
        values = values - 8
    groups = values.view(len(values), -1, GROUP).to(scales.dtype)
    weight: Tensor = groups.mul_(scales[..., None]).flatten(1)
    return weight


def quantized_base(model: Model, bits: int = 8) -> Model:
    """The transform `quantized_base`: quantizes the linear maps of the layers, which are frozen.

    Matrices whose number of inputs is no multiple of 32 stay as they are.

    Args:
        model: the model.
        bits: 8 or 4.

    Raises:
        UserError: `bits` is another number, or no matrix can be quantized.
    """
    if bits not in (4, 8):
        raise UserError(f"quantized_base: bits must be 8 or 4, not {bits!r}")
    count = 0
    for matrix in list(weight_matrices(model)):
        module: Any = matrix.module
        if matrix.layer is None or not is_plain_linear(module) or module.in_features % GROUP:
            continue
        parent, _, name = matrix.name.rpartition(".")
        quantized = QuantizedLinear(module.weight.detach(), module.bias, bits)
        setattr(model.get_submodule(parent), name, quantized)
        count += 1
    if not count:
        raise UserError(
            f"base_weights: no matrix of the layers has a multiple of {GROUP} inputs to quantize"
        )
    return model
