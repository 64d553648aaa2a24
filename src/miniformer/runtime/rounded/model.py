"""A copy of a model for inference whose layers compute with weights of fewer bits.

model -> linear layers of its stacks -> `RoundedLinear`, kept until their weights change
      -> a copy of the modules above them; all other modules and all parameters are shared
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.config import UserError
from miniformer.model.matrices import layer_of, named_components
from miniformer.model.ops.products import is_plain_linear
from miniformer.runtime.native.build import NativeKernelsUnavailable
from miniformer.runtime.native.engine import warn_once, weight_version
from miniformer.runtime.native.huge_pages import HugePageArena
from miniformer.runtime.native.weights import GROUP_SIZE, smallest_exact_dtype
from miniformer.runtime.rounded.linear import RoundedLinear, has_instructions

# By linear layer: the type and the versions of its parameters, and its replacement, if it has one.
_Entry = tuple[tuple[Any, ...], RoundedLinear | None]
_ROUNDED: weakref.WeakKeyDictionary[nn.Linear, _Entry] = weakref.WeakKeyDictionary()


def rounded_model(model: Any, weight_dtype: str) -> Any | None:
    """A copy of a model for inference on a CPU; None: the model itself is to be used.

    The linear layers of the stacks are replaced if they are plain float32 ones. Embeddings, heads,
    attention, norms and linear-like modules such as adapters stay as they are. Methods that decode
    need the model itself.

    Args:
        model: model whose layers are named `layers.N`. It is not changed.
        weight_dtype: bf16, int8, int4; float32: None; stored: of each matrix the type in which the
            directory of the model has it, if the processor has instructions for its products.

    Raises:
        UserError: another `weight_dtype` than stored is not possible for any matrix.
    """
    is_stored = weight_dtype == "stored"
    if weight_dtype == "float32" or (is_stored and not getattr(model, "weight_storage", None)):
        return None
    try:
        layers = _rounded_layers(model, weight_dtype)
    except NativeKernelsUnavailable as error:
        if not is_stored:
            raise UserError(
                f"weight_dtype={weight_dtype} needs the native kernels: {error}"
            ) from None
        warn_once(str(error))
        return None
    return _copy(model, layers)


def _rounded_layers(model: nn.Module, weight_dtype: str) -> dict[nn.Module, nn.Module]:
    """The replacement of each linear layer that has one.

    Raises:
        NativeKernelsUnavailable: there is none; the message is the reason.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        raise NativeKernelsUnavailable(
            f"its weights are on {weight.device.type}, and the kernels are for CPUs"
        )
    if torch.is_autocast_enabled("cpu"):
        raise NativeKernelsUnavailable("autocast is on")
    layers: dict[nn.Module, nn.Module] = {}
    arena = HugePageArena()
    for name, module in named_components(model):
        if is_plain_linear(module) and layer_of(name) is not None and _is_plain(module):
            rounded = _rounded(module, weight_dtype, arena)
            if rounded is not None:
                layers[module] = rounded
    if not layers:
        raise NativeKernelsUnavailable(
            f"its layers have no float32 matrix of a multiple of {GROUP_SIZE} inputs without "
            "hooks, adapters or other changes; use float32, or merge adapters"
        )
    return layers


def _is_plain(linear: nn.Linear) -> bool:
    """True for float32 weights, and no hooks or methods of its own."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks)
    return (
        not any(hooks)
        and "forward" not in vars(linear)
        and "weight" in linear._parameters  # otherwise it is computed
        and type(linear.weight) is nn.Parameter
        and linear.weight.dtype == torch.float32
    )


def _rounded(linear: nn.Linear, weight_dtype: str, arena: HugePageArena) -> RoundedLinear | None:
    """The replacement of a linear layer; None: its matrix stays float32."""
    key = (weight_dtype, *map(_version, (linear.weight, linear.bias)))
    entry = _ROUNDED.get(linear)
    if entry is None or entry[0] != key:
        dtype = weight_dtype
        if dtype == "stored":
            dtype = smallest_exact_dtype(linear.weight.detach())
            if dtype != "float32" and not has_instructions(dtype):
                dtype = "float32"
        elif dtype != "bf16" and linear.in_features % GROUP_SIZE:
            dtype = "float32"
        rounded = None if dtype == "float32" else RoundedLinear(linear, dtype, arena)
        _ROUNDED[linear] = entry = (key, rounded)
    return entry[1]


def _version(parameter: Tensor | None) -> tuple[int, int] | None:
    return None if parameter is None else weight_version(parameter)


def _copy(module: Any, replaced: dict[nn.Module, nn.Module]) -> Any:
    """The module, or a copy with other children if one within it is replaced."""
    if module in replaced:
        return replaced[module]
    children = {
        name: None if child is None else _copy(child, replaced)
        for name, child in module._modules.items()
    }
    if all(child is module._modules[name] for name, child in children.items()):
        replaced[module] = module
    else:
        copied = replaced[module] = module.__new__(type(module))
        vars(copied).update(vars(module))
        vars(copied)["_modules"] = children
    return replaced[module]
