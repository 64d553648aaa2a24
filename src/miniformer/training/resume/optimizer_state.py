"""State of an optimizer as tensors by name, and the rest as JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an optimizer by name, and the rest of its state as JSON."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {"tensors": {}, "values": {}, "groups": []}
    for name, parameter in _named_parameters(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
                dtype = str(value.dtype).removeprefix("torch.")
                spec = [list(value.shape), dtype, value.device.type]
                metadata["tensors"].setdefault(name, {})[key] = spec
            else:
                metadata["values"].setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        values = {key: value for key, value in group.items() if isinstance(value, int | float)}
        metadata["groups"].append(values)
    return tensors, metadata


def allocate_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, metadata: dict[str, Any]
) -> dict[str, Tensor]:
    """Allocates an optimizer's state from its metadata; returns the empty tensors by name."""
    tensors = {}
    for name, parameter in _named_parameters(model, optimizer):
        state = dict(metadata["values"].get(name, {}))
        for key, spec in metadata["tensors"].get(name, {}).items():
            state[key] = tensors[f"optimizer.{name}.{key}"] = _empty(spec, parameter)
        if state:
            optimizer.state[parameter] = state
    for group, values in zip(optimizer.param_groups, metadata["groups"], strict=True):
        group.update(values)
    return tensors


def _empty(spec: list[Any], parameter: Tensor) -> Tensor:
    """An empty tensor; sharded like the parameter if it has its shape.

    Args:
        spec: shape, dtype and device type.
        parameter: the parameter that the state belongs to.
    """
    shape, name, device = spec
    dtype = getattr(torch, name)
    if shape == list(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype, device="cpu" if device == "cpu" else parameter.device)


def _named_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[tuple[str, Tensor]]:
    """An optimizer's parameters with their names in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (names.get(id(parameter), f"{i}.{j}"), parameter)
        for i, group in enumerate(optimizer.param_groups)
        for j, parameter in enumerate(group["params"])
    ]
