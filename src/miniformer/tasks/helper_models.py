"""Models that the loss of a task needs and that are not trained, such as a teacher."""

from __future__ import annotations

import functools
from typing import Any, Self

import torch
from torch import nn

_DEVICE = "_helper_device"
_STATE = ("helpers", _DEVICE)  # attributes of a task that are no fields


class HelperModels:
    """Base class of `Task` that builds such models, and moves and copies them with it."""

    def helper_models(self) -> dict[str, nn.Module]:
        """Builds models that the loss needs and that are not trained, such as a teacher.

        `helpers` holds them, in eval mode, without gradients and on the device of the run. They
        are neither saved nor averaged, and each device has whole ones.
        """
        return {}

    @functools.cached_property
    def helpers(self) -> dict[str, nn.Module]:
        """The `helper_models`, built at the first use."""
        with torch.random.fork_rng(devices=[]):  # a new model draws random weights first
            models = self.helper_models()
        device = vars(self).get(_DEVICE, "cpu")
        return {
            name: model.eval().requires_grad_(False).to(device) for name, model in models.items()
        }

    def move_helpers(self, device: torch.device | str) -> None:
        """Sets the device of the helper models, also of those that are not built yet."""
        vars(self)[_DEVICE] = device
        if "helpers" in vars(self):
            for model in self.helpers.values():
                model.to(device)

    def with_helpers_of(self, task: HelperModels) -> Self:
        """Returns this task with the helper models of another state of it."""
        vars(self).update({n: value for n, value in vars(task).items() if n in _STATE})
        return self

    def __getstate__(self) -> dict[str, Any]:
        """State without helper models, which are built anew."""
        return {name: value for name, value in vars(self).items() if name not in _STATE}
