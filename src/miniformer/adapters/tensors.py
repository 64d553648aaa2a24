"""Tensors of adapters under the names of peft's `adapter_model.safetensors`.

base_model.model.<module>.lora_A.weight       layers.0.attention.q_proj: its part `lora_A`
base_model.model.<module>.<parameter>         a tensor of a module that is saved as a whole
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.adapters.parts import LoraPart
from miniformer.adapters.state import AdapterEntry, state_of
from miniformer.config import UserError

PREFIX = "base_model.model."
# Parameter of a part -> its name in the file, after that of the module.
_NAMES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
    "rows": "token_adapter.trainable_tokens_delta",
    "ia3_l": "ia3_l",
    "down.weight": "bottleneck.down.weight",
    "down.bias": "bottleneck.down.bias",
    "up.weight": "bottleneck.up.weight",
    "up.bias": "bottleneck.up.bias",
}
_PARAMETERS = {name: parameter for parameter, name in _NAMES.items()}


def split_name(name: str) -> tuple[str, str | None]:
    """Module and parameter of its part; the whole name and None for a tensor of a module."""
    for ending, parameter in _PARAMETERS.items():
        if name.endswith(f".{ending}"):
            return name[: -len(ending) - 1], parameter
    return name, None


def join_name(module: str, parameter: str | None) -> str:
    """The inverse of `split_name`."""
    return module if parameter is None else f"{module}.{_NAMES[parameter]}"


def adapter_tensors(model: Any, name: str) -> dict[str, Tensor]:
    """Tensors of an adapter by name, without the prefix of peft.

    The product of a `pissa` adapter includes the initial one, which the base has: both factors have
    twice the rank.
    """
    entry = state_of(model).entries[name]
    tensors: dict[str, Tensor] = {}
    for path in entry.targets:
        part = model.get_submodule(path).adapters[name]
        own = {key: tensor.detach() for key, tensor in part.named_parameters()}
        if isinstance(part, LoraPart) and part.initial_A is not None:
            assert part.initial_B is not None
            own["lora_A"] = torch.cat((own["lora_A"], part.initial_A))
            own["lora_B"] = torch.cat((own["lora_B"], -part.initial_B), 1)
        tensors |= {join_name(path, key): tensor for key, tensor in own.items()}
    tensors |= {key: tensor.detach() for key, tensor in entry.saved.items()}
    return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}


def load_tensors(model: Any, name: str, tensors: Mapping[str, Tensor], path: object) -> None:
    """Copies tensors into an adapter.

    Raises:
        UserError: a tensor is missing, is not of the adapter, or has another shape.
    """
    expected = _parameters(model, state_of(model).entries[name], name)
    if different := sorted(expected.keys() ^ tensors.keys()):
        problem = "is missing" if different[0] in expected else "has no place in the adapter"
        raise UserError(f"{path}: the tensor {different[0]} {problem}")
    for key, parameter in expected.items():
        if parameter.shape != tensors[key].shape:
            raise UserError(
                f"{path}: {key} is {list(tensors[key].shape)}, but this base needs "
                f"{list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(tensors[key])


def _parameters(model: Any, entry: AdapterEntry, name: str) -> dict[str, nn.Parameter]:
    parameters: dict[str, nn.Parameter] = {}
    for path in entry.targets:
        part = model.get_submodule(path).adapters[name]
        parameters |= {join_name(path, key): p for key, p in part.named_parameters()}
    return parameters | entry.saved


def targets_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Modules with a product of LoRA, or factors of IA3, by name, each with its rank."""
    ranks: dict[str, int] = {}
    for key, tensor in tensors.items():
        module, parameter = split_name(key)
        if parameter in ("lora_A", "lora_embedding_A", "ia3_l"):
            ranks[module] = 0 if tensor.dim() != 2 else len(tensor)
    return ranks
