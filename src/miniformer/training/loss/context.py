"""StepContext: the argument of `Task.step`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.loss_terms import LossTerm


class StepContext:
    """A batch of an optimizer step, and the passes of a task over it.

    The step may have further batches, and other devices have batches of their own: the task adds
    gradients of sums and records their counts, and the step divides once. Passes run under the
    autocast of the run.

    Attributes:
        model: the model, in training mode.
        batch: the batch, on the device.
        task: the task.
    """

    def __init__(self, passes: Any, batch: Batch) -> None:
        self._passes, self.batch = passes, batch
        module = passes.module
        self.model, self.task = module.model, module.task
        self._factor = 0.0 if batch.get("about", {}).get("repeated", False) else 1.0
        self._loss: Tensor | None = None
        self._count: Tensor | None = None
        self._has_terms = False

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return int(self._passes.module.trainer.global_step)

    @property
    def device(self) -> torch.device:
        """The device of the model and the batch."""
        device: torch.device = self._passes.module.device
        return device

    @property
    def world_size(self) -> int:
        """Number of devices of the run."""
        return int(self._passes.module.trainer.world_size)

    def loss(self, batch: Batch | None = None) -> tuple[Tensor, Tensor, Mapping[str, LossTerm]]:
        """Summed loss, count and all terms of a forward pass, as arguments of `backward`.

        Args:
            batch: None: the whole batch; else a part of it, or a changed one.
        """
        self._has_terms = True
        result: tuple[Tensor, Tensor, Mapping[str, LossTerm]]
        result = self._passes.module.loss_module(self.batch if batch is None else batch)
        return result

    def backward(
        self,
        loss: Tensor,
        count: Tensor | float | None = None,
        terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        """Adds the gradient of a summed loss to those of the step, any number of times.

        Args:
            loss: the sum, a scalar.
            count: the count that it sums over, which is recorded with the loss; None: `record` is
                called for it, or for another loss whose gradient this one has.
            terms: further terms.
        """
        if terms and count is None:
            raise ValueError("backward: terms need the count of the loss")
        terms = {name: self._scaled(term) for name, term in (terms or {}).items()}
        if count is None:
            self._passes.backward(loss * self._factor, None, terms)
            return
        total = self._as_count(count, loss)
        self._passes.backward(loss if self._factor else loss * 0.0, total, terms)
        self._record(loss, total, terms)

    def record(
        self,
        loss: Tensor,
        count: Tensor | float,
        terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        """Adds to the sums of the step; the gradients are those of `backward`.

        Args:
            loss: a summed loss, for the metrics and the NaN check.
            count: the count that it sums over, which divides the gradients.
            terms: further terms, for the metrics.
        """
        scaled = {name: self._scaled(term) for name, term in (terms or {}).items()}
        self._record(loss, self._as_count(count, loss), scaled)

    def _record(self, loss: Tensor, count: Tensor, terms: Mapping[str, LossTerm]) -> None:
        loss = loss.detach() if self._factor else loss.detach() * 0.0
        self._loss = loss if self._loss is None else self._loss + loss
        self._count = count if self._count is None else self._count + count
        self._passes.record_terms(terms, count, self.batch.get("about", {}).get("place"))

    def _as_count(self, count: Tensor | float, loss: Tensor) -> Tensor:
        value = count if isinstance(count, Tensor) else loss.new_tensor(count)
        return value.detach() * int(self._factor)

    def _scaled(self, term: LossTerm) -> LossTerm:
        """The term; of a batch that another device has, too, a term without an effect."""
        if self._factor:
            return term
        return LossTerm(
            None if term.total is None else term.total * 0.0,
            None if term.count is None else term.count * 0,
            term.weight,
            {name: value * 0 for name, value in term.stats.items()},
        )

    def add_remaining_terms(self) -> None:
        """Adds the terms of `TrainConfig.loss_terms`, unless the task has called `loss`.

        Raises:
            ValueError: the task has recorded no loss.
        """
        if self._loss is None or self._count is None:
            raise ValueError(
                f"task {self.task.name}: its step recorded no loss; call context.backward(loss, "
                "count), or context.record(loss, count)"
            )
        if self._has_terms:
            return
        named = self._passes.terms.of_batch(self.model, self.batch)
        terms = {name: self._scaled(term) for name, term in named.items()}
        self._passes.backward(self._loss * 0.0, None, terms)
        position = self.batch.get("about", {}).get("place")
        self._passes.record_terms(terms, self._count, position)

    def recorded_loss(self) -> tuple[Tensor, Tensor]:
        """Summed loss of the batch, and its count."""
        assert self._loss is not None
        assert self._count is not None
        return self._loss, self._count
