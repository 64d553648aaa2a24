"""Averages of weights over a run: exponential moving average, checkpoint average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from miniformer.training.distributed.strategies import full_state_dict, full_tensor


class Ema:
    """Exponential moving average of a model's trained weights (Polyak & Juditsky 1992).

    Args:
        model: the model; averages of sharded weights are sharded.
        decay: weight of the previous average in each step, at most (1 + n) / (10 + n) after n
            steps, so that the initial weights decay quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self._shadow: dict[str, Tensor] | None = None

    def update(self) -> None:
        """Updates the average with the current weights."""
        averages, weights = self.state_tensors(), self._parameters()
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            [averages[name] for name in weights], list(weights.values()), 1 - decay
        )

    def reset(self) -> None:
        """Sets the averages to the current weights."""
        for name, weight in self._parameters().items():
            self.state_tensors()[name].copy_(weight)

    def state_tensors(self) -> dict[str, Tensor]:
        """Averages by parameter name; before the first step, the weights."""
        if self._shadow is None:  # created late: sharding replaces parameters
            self._shadow = {name: weight.clone() for name, weight in self._parameters().items()}
        return self._shadow

    def get_extra_state(self) -> dict[str, Any]:
        """State besides `state_tensors`."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores a state; its tensors are then copied into `state_tensors()`."""
        self.steps = state["steps"]

    def _parameters(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {name: weight.detach() for name, weight in named if weight.requires_grad}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the averages and the model's weights."""
        averages = self.state_tensors()
        for name, weight in self._parameters().items():
            original = weight.clone()
            weight.copy_(averages[name])
            averages[name].copy_(original)


class CheckpointAverage:
    """Mean of the weights at the last validations (Vaswani et al. 2017, section 6.1).

    Frozen weights and buffers that hold no floating-point numbers are not averaged.

    Args:
        model: the model.
        max_checkpoints: number of validations.
    """

    def __init__(self, model: nn.Module, max_checkpoints: int) -> None:
        self.model, self.max_checkpoints = model, max_checkpoints
        self._snapshots: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._snapshots)

    def add(self) -> None:
        """Adds the current weights and drops the oldest beyond `max_checkpoints`."""
        self._snapshots = [*self._snapshots, self._clone_state_dict()][-self.max_checkpoints :]

    def mean(self) -> dict[str, Tensor]:
        """All weights, with the mean of the stored ones, unsharded on every device."""
        means = {
            name: torch.stack([full_tensor(weights[name]) for weights in self._snapshots]).mean(0)
            for name in self._snapshots[0]
        }
        return {**full_state_dict(self.model), **means}

    def state_tensors(self) -> dict[str, Tensor]:
        """Stored weights by number and name."""
        return {
            f"{number}.{name}": weight
            for number, weights in enumerate(self._snapshots)
            for name, weight in weights.items()
        }

    def get_extra_state(self) -> dict[str, Any]:
        """State besides `state_tensors`."""
        return {"kept": len(self._snapshots)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores a state; its tensors are then copied into `state_tensors()`."""
        self._snapshots = [self._clone_state_dict() for _ in range(state["kept"])]

    def _clone_state_dict(self) -> dict[str, Tensor]:
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        return {
            name: value.detach().clone()
            for name, value in self.model.state_dict().items()
            if name not in frozen and value.is_floating_point()
        }
