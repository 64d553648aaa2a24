"""Averages of weights over a run: often better than any weights of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992).

    Args:
        model: whose weights are averaged; sharded ones stay so.
        decay: what the average keeps of itself at each step; less at first: (1 + n) / (10 + n)
            after n steps, so that it soon forgets the first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self._shadow: dict[str, Tensor] | None = None

    def update(self) -> None:
        """Takes the weights after a step into the average."""
        averages, weights = self.state_tensors(), self._parameters()
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            [_local_tensor(averages[name]) for name in weights],
            [_local_tensor(each) for each in weights.values()],
            1 - decay,
        )

    @contextlib.contextmanager
    def average_parameters(self) -> Iterator[None]:
        """The model has the averages, and gets its own weights back."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_tensors(self) -> dict[str, Tensor]:
        """The averages by name; before the first step the weights themselves."""
        if self._shadow is None:  # made late: sharding replaces parameters
            self._shadow = {name: each.clone() for name, each in self._parameters().items()}
        return self._shadow

    def get_extra_state(self) -> dict[str, Any]:
        """The rest of its state."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes up a state, whose tensors are to be copied into `tensors()`."""
        self.steps = state["steps"]

    def _parameters(self) -> dict[str, Tensor]:
        return {name: each.detach() for name, each in self.model.named_parameters()}

    @torch.no_grad()
    def _swap(self) -> None:
        averages = self.state_tensors()
        for name, weight in self._parameters().items():
            kept = weight.clone()
            weight.copy_(averages[name])
            averages[name].copy_(kept)


class CheckpointAverage:
    """The weights at the last validations, for their mean (Vaswani et al. 2017, section 6.1).

    Args:
        model: whose weights are kept.
        count: of how many validations.
    """

    def __init__(self, model: nn.Module, max_checkpoints: int) -> None:
        self.model, self.max_checkpoints = model, max_checkpoints
        self._snapshots: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._snapshots)

    def add(self) -> None:
        """Keeps the weights of now, and the last ones before."""
        self._snapshots = [*self._snapshots, self._clone_state_dict()][-self.max_checkpoints :]

    def mean(self) -> dict[str, Tensor]:
        """The mean of the weights kept, whole on every device."""
        return {
            name: torch.stack([_full_tensor(weights[name]) for weights in self._snapshots]).mean(0)
            for name in self._snapshots[0]
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """All weights that are kept, by number and name."""
        return {
            f"{number}.{name}": each
            for number, weights in enumerate(self._snapshots)
            for name, each in weights.items()
        }

    def get_extra_state(self) -> dict[str, Any]:
        """The rest of its state."""
        return {"kept": len(self._snapshots)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes up a state, whose tensors are to be copied into `tensors()`."""
        self._snapshots = [self._clone_state_dict() for _ in range(state["kept"])]

    def _clone_state_dict(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self.model.state_dict().items()}


def _full_tensor(tensor: Tensor) -> Tensor:
    """A tensor put together again of what devices have of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _local_tensor(tensor: Tensor) -> Tensor:
    """What this device has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
