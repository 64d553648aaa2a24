"""Forward and backward passes of a step whose loss has terms, or whose task has its own `step`.

The gradient of a term whose count is that of the loss is part of the loss's. Of a term with another
count, the gradient is added to the loss's after both are divided by their counts:

| batches and devices of a step | counts of the step are known             | backward passes     |
|-------------------------------|------------------------------------------|---------------------|
| one batch on each device      | before the backward pass: reduced first  | one                 |
| several batches, or `step`    | after the last batch: separate gradients | one more for a term |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from miniformer.config.early_exit import EarlyExitConfig
from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.base import Task
from miniformer.tasks.loss_terms import LossTerm, count_ratio
from miniformer.training.distributed import strategies
from miniformer.training.loss.context import StepContext
from miniformer.training.loss.exits import ExitLosses
from miniformer.training.loss.terms import LossTerms


class TrainingPasses:
    """Passes of the batches of an optimizer step, and the sums of its terms and statistics.

    Args:
        module: the LightningModule.
        settings: `TrainConfig.loss_terms`.
        early_exit: `TrainConfig.early_exit`.
    """

    def __init__(
        self,
        module: Any,
        settings: Sequence[str | Mapping[str, Any]],
        early_exit: Mapping[str, Any] | None = None,
    ) -> None:
        self.module = module
        exits = None
        if early_exit is not None:
            config = EarlyExitConfig.from_dict(dict(early_exit))
            exits = ExitLosses(module.model, module.task, config)
        self.terms = LossTerms(module.task, settings, exits)
        self.terms.start(module.model, module.task, module.tokenizer)
        self.has_own_step = type(module.task).step is not Task.step
        self.callback = LossTermStates(self)
        self._last_sums: dict[str, Tensor] = {}  # of the last step
        self.start_step()

    def start_step(self) -> None:
        """Discards the sums of an unfinished step."""
        self._sums: dict[str, Tensor] = {}  # by term: sum and count, [2]
        self._stats: dict[tuple[str, str], Tensor] = {}  # by term and name
        self._gradients: dict[str, list[Tensor | None]] = {}  # by term, of each parameter

    @property
    def _one_batch(self) -> bool:
        return self.module.accumulate_grad_batches == 1 and not self.has_own_step

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for p in self.module.model.parameters() if p.requires_grad]

    def run(self, batch: Batch, completes_step: bool) -> tuple[Tensor, Tensor]:
        """Runs the passes of a batch; returns its summed loss and count.

        Args:
            batch: the batch.
            completes_step: it is the last one of its optimizer step.
        """
        module, context = self.module, StepContext(self, batch)
        if self.has_own_step:
            with strategies.grad_sync(module, False):  # it has any number of backward passes
                module.task.step(context)
                context.add_remaining_terms()
            if completes_step and module.trainer.world_size > 1:
                strategies.average_over_ranks(self._gradients_of_loss())
        else:
            with strategies.grad_sync(module, completes_step):
                context.backward(*context.loss())
        return context.recorded_loss()

    def _gradients_of_loss(self) -> list[Tensor]:
        """The gradients of all parameters, zeros where there are none."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def backward(self, loss: Tensor, count: Tensor | None, terms: Mapping[str, LossTerm]) -> None:
        """Adds the gradients of a summed loss and of terms to those of the step."""
        apart = {}
        for name, term in terms.items():
            if term.total is None or not term.weight or not term.total.requires_grad:
                continue
            if term.count is None:
                loss = loss + term.weight * term.total
            else:
                apart[name] = term
        if self._one_batch and self.terms.names:
            assert count is not None
            loss = self._add_terms(loss, count, apart)
        elif apart:
            loss = self._accumulate(loss, apart)
        if loss.requires_grad:
            total = loss if count is None else strategies.backward_loss(self.module, loss, count)
            self.module.manual_backward(total)

    def _add_terms(self, loss: Tensor, count: Tensor, terms: Mapping[str, LossTerm]) -> Tensor:
        """Adds terms with their own counts to the only loss of this step and device."""
        own = [getattr(terms.get(name), "count", 0.0) for name in self.terms.names]
        counts = torch.stack([_scalar(value, loss) for value in (count, *own)])
        if self.module.trainer.world_size > 1:
            dist.all_reduce(counts)
        for name, own_count in zip(self.terms.names, counts[1:], strict=True):
            if name in terms:
                term = terms[name]
                assert term.total is not None
                ratio = count_ratio(counts[0], own_count).to(term.total)
                loss = loss + term.total * (term.weight * ratio)
        return loss

    def _accumulate(self, loss: Tensor, terms: Mapping[str, LossTerm]) -> Tensor:
        """Adds gradients of terms to those of earlier batches; returns the loss to go backward."""
        strategies.require_replicated_model(
            self.module, "a loss term with a count of its own", "set accumulate_grad_batches=1"
        )
        parameters = self._parameters
        for name, term in terms.items():
            assert term.total is not None
            gradients = torch.autograd.grad(
                term.weight * term.total, parameters, retain_graph=True, allow_unused=True
            )
            sums = self._gradients.setdefault(name, [None] * len(parameters))
            for index, gradient in enumerate(gradients):
                previous = sums[index]
                if gradient is not None:
                    sums[index] = gradient if previous is None else previous + gradient
            if self.module.trainer.world_size > 1:
                loss = loss + 0.0 * term.total  # DDP waits for a gradient of each parameter
        return loss

    def record_terms(self, terms: Mapping[str, LossTerm], count: Tensor, position: Any) -> None:
        """Adds to the sums and statistics of the step.

        Args:
            terms: terms of a batch by name.
            count: the count of its loss.
            position: that of the batch in the data, for the NaN check.
        """
        for name, term in terms.items():
            if term.total is not None:
                own = count if term.count is None else term.count
                row = torch.stack([_scalar(term.total, term.total), _scalar(own, term.total)])
                self._add(self._sums, name, row)
                self.module.nan_check.record(term.total.detach(), position)
            for key, value in term.stats.items():
                self._add(self._stats, (name, key), _wide(value.detach()))

    @staticmethod
    def _add(sums: dict[Any, Tensor], key: Any, value: Tensor) -> None:
        sums[key] = sums[key] + value if key in sums else value

    def finish_step(self, count: Tensor) -> None:
        """Reduces sums over devices, and adds the gradients of terms to those of the loss.

        Args:
            count: the count that the loss of the step sums over, on all devices.
        """
        names, world_size = self.terms.names, self.module.trainer.world_size
        sums = {name: self._sums.get(name, count.new_zeros(2)) for name in names}
        exists = count.new_tensor([float(name in self._gradients) for name in names])
        if world_size > 1:
            stats = [self._stats[key] for key in sorted(self._stats)]
            strategies.sum_over_ranks([*sums.values(), exists, *stats])
        self._last_sums = sums
        own = dict(zip(names, exists.tolist(), strict=True)) if world_size > 1 else self._gradients
        for name in names:
            if own.get(name):
                self._add_gradients(name, count_ratio(count, sums[name][1]))

    def metrics(self) -> dict[str, float]:
        """Mean of each term in the last step, by name."""
        rows = {name: row.tolist() for name, row in self._last_sums.items()}
        return {name: total / count for name, (total, count) in rows.items() if count > 0}

    def _add_gradients(self, name: str, scale: Tensor) -> None:
        """Adds the accumulated gradients of a term, times `scale`, to those of the loss."""
        parameters = self._parameters
        gradients = self._gradients.get(name, [None] * len(parameters))
        if self.module.trainer.world_size > 1:
            pairs = zip(parameters, gradients, strict=True)
            gradients = [torch.zeros_like(p) if g is None else g for p, g in pairs]
            strategies.average_over_ranks([g for g in gradients if g is not None])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            scaled = gradient * scale.to(gradient)
            if parameter.grad is None:
                parameter.grad = scaled
            else:
                parameter.grad.add_(scaled)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Calls the hooks of the terms and of the task with the summed statistics."""
        model, task = self.module.model, self.module.task
        for name, term in self.terms.configured.items():
            if (hook := getattr(term.component, "after_optimizer_step", None)) is not None:
                hook(model, {key: x for (owner, key), x in self._stats.items() if owner == name})
        own = {key: x for (owner, key), x in self._stats.items() if owner in task.loss_terms}
        task.after_optimizer_step(model, own)
        self.start_step()


class LossTermStates(L.Callback):
    """Moves the terms and helper models of a run to its device; the states of terms are its own.

    Args:
        passes: the passes of the run.
    """

    def __init__(self, passes: TrainingPasses) -> None:
        self._passes = passes

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if self._passes.has_own_step:
            strategies.require_replicated_model(module, "a task with its own step", "use ddp")
        device = trainer.strategy.root_device
        for term in self._passes.terms.configured.values():
            if isinstance(term.component, torch.nn.Module):
                term.component.to(device)
        module.task.move_helpers(device)
        module.task.helpers  # noqa: B018  built before the first step, whose time is measured

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._passes.start_step()

    def state_dict(self) -> dict[str, Any]:
        return self._passes.terms.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._passes.terms.load_state_dict(state)


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """A number as a detached scalar tensor, in float64 where the device has it."""
    tensor = value if isinstance(value, Tensor) else like.new_tensor(value)
    return _wide(tensor.detach().to(like.device))


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.device.type == "mps" else value.double()
