"""Quantization-aware training (Jacob et al. 2018): the transform `quantize_aware`.

Training and evaluation compute with the weights that `miniformer quantize` stores, while the
optimizer changes float weights. The gradient of a rounded weight is that of the float weight
(straight-through, Bengio et al. 2013).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from miniformer.checkpoint.stored_types import Integers
from miniformer.compression.weights import Types, chosen_types, named_matrices
from miniformer.config import UserError
from miniformer.model.head import Head
from miniformer.model.ops.products import is_plain_linear, linear

NAME = "quantize_aware"
Model = TypeVar("Model", bound=nn.Module)


class RoundedWeight:
    """Mixin of a module whose weight is rounded when it is applied.

    Attributes:
        weight: float weights, which are trained, [O, I].
        bits: 8 or 4.
    """

    weight: Any
    bits: int

    def effective_weight(self) -> Tensor:
        """The rounded weight, [O, I]."""
        return round_through(self.weight, self.bits)


class RoundedLinear(RoundedWeight, nn.Linear):
    """A linear layer whose weight is rounded."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(input, self.effective_weight(), self.bias)


class RoundedEmbedding(RoundedWeight, nn.Embedding):
    """An embedding whose rows are rounded."""

    def forward(self, input: Tensor) -> Tensor:
        """[...] -> [..., I]."""
        return F.embedding(input, self.effective_weight())


class RoundedHead(RoundedWeight, Head):
    """An untied head of a vocabulary whose weight is rounded."""


class _RoundThrough(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int) -> Tensor:
        return Integers.decode(Integers.encode(weight, bits), bits).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def round_through(weight: Tensor, bits: int) -> Tensor:
    """The weights of the nearest integers, [O, I], with the gradient of the weights themselves."""
    rounded: Tensor = _RoundThrough.apply(weight, bits)  # type: ignore[no-untyped-call]
    return rounded


def quantize_aware(model: Model, to: str) -> Model:
    """The transform `quantize_aware`: rounds weights when they are applied.

    Names and parameters of the modules stay as they are.

    Args:
        model: the model.
        to: int8 or int4, as in `miniformer.quantize`.

    Raises:
        UserError: `to` is another type, or no matrix can be rounded.
    """
    if to not in ("int8", "int4"):
        raise UserError(f"quantize_aware: to must be int8 or int4, not {to!r}")
    matrices = named_matrices(model)
    for name, options in chosen_types(model, to)[0].items():
        module: Any = matrices[name].module
        rounded = _rounded_class(module)
        if rounded is not None:
            module.__class__ = rounded  # the parameters, and references to the module, stay
            module.bits = options["bits"]
    return model


def trained_types(model: nn.Module) -> Types:
    """The stored types of the matrices that the transform rounds."""
    return {
        name: {"type": "integers", "bits": matrix.module.bits}
        for name, matrix in named_matrices(model).items()
        if isinstance(matrix.module, RoundedWeight)
    }


def _rounded_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of a module with a rounded weight; None: it stays as it is."""
    if is_plain_linear(module):
        return RoundedLinear
    if type(module) is nn.Embedding:
        return RoundedEmbedding
    is_plain_head = type(module) is Head and module.dense is None and module.norm is None
    return RoundedHead if is_plain_head else None
