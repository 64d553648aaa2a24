"""NaN check: detects NaN or infinite losses, and the step and batch that they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.data.datamodule import MiniFormerDataModule

_MAX_PENDING = 50  # losses that are checked together on a GPU, to avoid a synchronization for each


class NonFiniteLossError(UserError):
    """A loss is NaN or infinite.

    Args:
        split: training or validation.
        value: the loss.
        step: optimizer step.
        batch_positions: positions in the data of the batches with such a loss.

    Attributes:
        problem: the message without its advice.
    """

    def __init__(
        self,
        split: str,
        value: float,
        step: int,
        batch_positions: list[dict[str, int]] | None = None,
    ) -> None:
        self.problem = f"the {split} loss is {value} at step {step}"
        super().__init__(f"{self.problem}; lower lr, or raise warmup_steps")
        self.step, self.batch_positions = step, batch_positions or []


class NaNCheck:
    """Checks the loss of every batch: on a CPU at its step, on a GPU some steps later."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, dict[str, int] | None]] = []
        self._pending_steps: list[int] = []  # of the first losses in `_pending`

    def record(self, loss: Tensor, batch_position: dict[str, int] | None) -> None:
        """Records the summed loss and the position in the data of a batch."""
        self._pending.append((loss, batch_position))

    def check(self, step: int, *, now: bool = False) -> None:
        """Checks the recorded losses.

        Args:
            step: the optimizer step of the losses recorded since the last check.
            now: check at once, even if that waits for the device.

        Raises:
            NonFiniteLossError: the loss of a batch is NaN or infinite.
        """
        self._pending_steps += [step] * (len(self._pending) - len(self._pending_steps))
        if not self._pending:
            return
        device: Any = self._pending[0][0].device
        if device.type != "cpu" and len(self._pending) < _MAX_PENDING and not now:
            return
        pending, steps = self._pending, self._pending_steps
        self._pending, self._pending_steps = [], []
        is_finite = torch.stack([loss for loss, _ in pending]).isfinite()
        bad_indices = (~is_finite).nonzero()[:, 0].tolist()
        if bad_indices:
            raise _first_error(pending, steps, bad_indices)


def _first_error(
    pending: Sequence[tuple[Tensor, Any]], steps: Sequence[int], bad_indices: Sequence[int]
) -> NonFiniteLossError:
    """The error of the first step with a loss that is not finite."""
    first = steps[bad_indices[0]]
    positions = [pending[i][1] for i in bad_indices if steps[i] == first]
    value = float(pending[bad_indices[0]][0])
    return NonFiniteLossError("training", value, first, [p for p in positions if p])


@contextlib.contextmanager
def explain_nan_errors(
    data: MiniFormerDataModule, last_checkpoint: Callable[[], Path | None]
) -> Iterator[None]:
    """Context that adds the records of the batch and the checkpoint before it to the message."""
    try:
        yield
    except NonFiniteLossError as error:
        raise UserError(nan_error_message(error, data, last_checkpoint())) from None


def nan_error_message(
    error: NonFiniteLossError, data: MiniFormerDataModule, checkpoint: Path | None
) -> str:
    """Error message with the records of the batch and the checkpoint before it."""
    lines, batches = [str(error)], data.train_dataloader()
    indices = [
        index
        for position in error.batch_positions
        for index in batches.record_indices(position) or []
    ]
    records = getattr(data.chunks["train"], "records", None)
    if indices and records is not None:
        locations = ", ".join(records.location(index) for index in indices[:5])
        more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
        lines.append(f"records of that batch: {locations}{more}")
    if checkpoint is not None:
        lines.append(
            f"the last finite checkpoint is {checkpoint}; resume from it with --resume "
            f"{checkpoint.parents[1]} and a lower lr"
        )
    return "; ".join(lines)
