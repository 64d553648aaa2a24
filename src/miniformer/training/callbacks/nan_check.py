"""Losses that are no number any more: noticed at their step, with the batch that they came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError

_MAX_PENDING = 50  # losses looked at together on a GPU, which would otherwise wait for each


class NonFiniteLossError(UserError):
    """A loss is infinite or not a number.

    Args:
        kind: of which data: training or validation.
        value: the loss.
        step: optimiser step.
        places: of the batches in question, as `Batches` numbers them.
    """

    def __init__(
        self,
        split: str,
        value: float,
        step: int,
        batch_positions: list[dict[str, int]] | None = None,
    ) -> None:
        super().__init__(
            f"the {split} loss is {value} at step {step}; lower lr, or raise warmup_steps"
        )
        self.step, self.batch_positions = step, batch_positions or []


class NaNCheck:
    """Looks at the loss of every batch: on a CPU at its step, on a GPU some time after."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, dict[str, int] | None]] = []
        self._pending_steps: list[int] = []  # of each that is noted

    def record(self, loss: Tensor, batch_position: dict[str, int] | None) -> None:
        """Takes note of a batch's summed loss, and of where the batch comes from."""
        self._pending.append((loss, batch_position))

    def check(self, step: int, *, now: bool = False) -> None:
        """Ends a run that learns nothing any more.

        Args:
            step: the optimiser step that the batches noted since the last check belong to.
            now: look even where that has to wait for the device.

        Raises:
            NotFiniteError: the loss of a batch is not finite.
        """
        self._pending_steps += [step] * (len(self._pending) - len(self._pending_steps))
        if not self._pending:
            return
        device: Any = self._pending[0][0].device
        if device.type != "cpu" and len(self._pending) < _MAX_PENDING and not now:
            return
        noted, steps = self._pending, self._pending_steps
        self._pending, self._pending_steps = [], []
        broken = (~torch.stack([loss for loss, _ in noted]).isfinite()).nonzero()[:, 0].tolist()
        if broken:
            first = steps[broken[0]]
            places = [noted[i][1] for i in broken if steps[i] == first]
            value = float(noted[broken[0]][0])
            raise NonFiniteLossError("training", value, first, [each for each in places if each])
