"""Model and task as one module, so that DDP and FSDP wrap one forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.base import BatchStats, Task


class LossModule(nn.Module):
    """Loss of a batch.

    A task calls the parts of its model separately. The hooks around a pass (gradient reduction of
    DDP, weight gathering of FSDP) need one `forward`, which is that of this module.

    Args:
        model: a model that `task` can use.
        task: computes the loss and the evaluation statistics.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the summed loss and its count; see `Task.loss`.

        Both are 0 for a batch that only keeps ranks synchronized (see `BatchLoader`).
        """
        loss, count = self.task.loss(self.model, batch)
        if is_duplicate_batch(batch):
            return loss * 0.0, count * 0
        return loss, count

    def eval_step(self, batch: Batch, *, test: bool) -> BatchStats:
        """Statistics of a validation or test batch for `Task.compute_metrics`."""
        step = self.task.test_step if test else self.task.eval_step
        return step(self.model, batch)


def is_duplicate_batch(batch: Batch) -> bool:
    """Returns whether another rank has this batch already."""
    return bool(batch.get("about", {}).get("repeated", False))
