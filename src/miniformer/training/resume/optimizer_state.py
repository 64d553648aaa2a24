"""State of an optimizer as tensors by name, and the rest as JSON."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Self

import torch
from torch import Tensor, nn

from miniformer.config import UserError

# Values of a parameter group that are settings of the optimizer, not its state.
_SETTINGS = ("lr", "lr_scale", "weight_decay")


@dataclasses.dataclass(frozen=True)
class OptimizerState:
    """Copy of the state of an optimizer, independent of the optimizer and of its model.

    Args:
        tensors: by name, such as `optimizer.head.weight.exp_avg`.
        metadata: shapes, types and numbers, as JSON.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        size = sum(tensor.nbytes for tensor in self.tensors.values())
        return f"OptimizerState({len(self.tensors)} tensors, {size:,} bytes)"

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> Self:
        """The state of an optimizer of a model."""
        tensors, metadata = optimizer_state(model, optimizer)
        return cls(
            {name: tensor.detach().clone() for name, tensor in tensors.items()},
            copy.deepcopy(metadata),
        )

    @torch.no_grad()
    def load_into(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Sets the state of an optimizer; its learning rates and weight decay stay.

        Raises:
            UserError: the state is of another optimizer, or of a model with other parameters.
        """
        self._check(model, optimizer)
        settings = [
            {name: group[name] for name in _SETTINGS if name in group}
            for group in optimizer.param_groups
        ]
        allocated = allocate_optimizer_state(model, optimizer, self.metadata)
        for name, tensor in allocated.items():
            tensor.copy_(self.tensors[name])
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)

    def _check(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        groups, stored = optimizer.param_groups, self.metadata["groups"]
        same = [
            {key for key, value in group.items() if isinstance(value, int | float)}
            for group in groups
        ] == [set(group) for group in stored]
        if not same:
            raise UserError("optimizer_state is of another optimizer; leave it out")
        shapes = {name: list(x.shape) for name, x in _named_parameters(model, optimizer)}
        for name, specs in self.metadata["tensors"].items():
            largest = max((spec[0] for spec in specs.values()), key=len)
            if name not in shapes or (largest and largest != shapes[name]):
                own = shapes.get(name, "none")
                raise UserError(
                    f"optimizer_state: {name} is {largest}, in this model it is {own}; the state "
                    "is of another model"
                )


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
