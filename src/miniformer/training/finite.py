"""Losses that are no number any more: noticed at their step, with the batch that they came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError

_AT_ONCE = 50  # losses looked at together on a GPU, which would otherwise wait for each


class NotFiniteError(UserError):
    """A loss is infinite or not a number.

    Args:
        kind: of which data: training or validation.
        value: the loss.
        step: optimiser step.
        places: of the batches in question, as `Batches` numbers them.
    """

    def __init__(
        self, kind: str, value: float, step: int, places: list[dict[str, int]] | None = None
    ) -> None:
        super().__init__(
            f"the {kind} loss is {value} at step {step}; lower lr, or raise warmup_steps"
        )
        self.step, self.places = step, places or []


class FiniteCheck:
    """Looks at the loss of every batch: on a CPU at its step, on a GPU some time after."""

    def __init__(self) -> None:
        self._noted: list[tuple[Tensor, dict[str, int] | None]] = []
        self._steps: list[int] = []  # of each that is noted

    def note(self, loss: Tensor, place: dict[str, int] | None) -> None:
        """Takes note of a batch's summed loss, and of where the batch comes from."""
        self._noted.append((loss, place))

    def check(self, step: int, *, now: bool = False) -> None:
        """Ends a run that learns nothing any more.

        Args:
            step: the optimiser step that the batches noted since the last check belong to.
            now: look even where that has to wait for the device.

        Raises:
            NotFiniteError: the loss of a batch is not finite.
        """
        self._steps += [step] * (len(self._noted) - len(self._steps))
        if not self._noted:
            return
        device: Any = self._noted[0][0].device
        if device.type != "cpu" and len(self._noted) < _AT_ONCE and not now:
            return
        noted, steps = self._noted, self._steps
        self._noted, self._steps = [], []
        broken = (~torch.stack([loss for loss, _ in noted]).isfinite()).nonzero()[:, 0].tolist()
        if broken:
            first = steps[broken[0]]
            places = [noted[i][1] for i in broken if steps[i] == first]
            value = float(noted[broken[0]][0])
            raise NotFiniteError("training", value, first, [each for each in places if each])
