"""A model and what it learns, as one module, so that engines see one forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.base import BatchStats, Task


class LossModule(nn.Module):
    """The loss of a batch.

    A task calls parts of its model one by one. What must happen around a whole pass (DDP's
    reduction, FSDP's gathering of weights) hangs on this module's `forward`.

    Args:
        model: what `task` can use as one.
        task: what it learns.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss, and what it sums over; see `Task.loss`.

        A batch that is there only to keep ranks in step (see `Batches`) counts nothing.
        """
        loss, count = self.task.loss(self.model, batch)
        if is_duplicate_batch(batch):
            return loss * 0.0, count * 0
        return loss, count

    def eval_step(self, batch: Batch, *, test: bool) -> BatchStats:
        """What `Task.figures` needs to know of a batch, of validation or of a test."""
        measure = self.task.test_step if test else self.task.eval_step
        return measure(self.model, batch)


def is_duplicate_batch(batch: Batch) -> bool:
    """Whether another rank has this batch already."""
    found: Any = batch.get("about", {}).get("repeated", False)
    return bool(found)
