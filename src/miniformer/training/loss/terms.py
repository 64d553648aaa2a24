"""The terms of a run: those of the task's loss, and those of `TrainConfig.loss_terms`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.registry.options import check_options
from miniformer.tasks.base import BatchStats, Task
from miniformer.tasks.loss_terms import LossTerm
from miniformer.training.loss.exits import ExitLosses

_STATS_KEY = "term:"  # prefix of the statistics of a validation batch


class ConfiguredTerm(NamedTuple):
    """A term of `TrainConfig.loss_terms`: called with model and batch, it returns a `LossTerm`."""

    component: Any
    weight: float


class LossTerms:
    """All terms of a run.

    Args:
        task: the task; `Task.loss_terms` has the names of its terms.
        settings: `TrainConfig.loss_terms`.
        exits: losses of exits after each layer; None: there are none.

    Raises:
        UserError: a setting is invalid, or a name is used twice.
    """

    def __init__(
        self,
        task: Task,
        settings: Sequence[str | Mapping[str, Any]],
        exits: ExitLosses | None = None,
    ) -> None:
        self.configured: dict[str, ConfiguredTerm] = {}
        self.exits = exits
        own = (*task.loss_terms, *(() if exits is None else exits.names))
        taken = {*own, *task.metrics, "loss"}
        for index, setting in enumerate(settings):
            label = f"loss_terms[{index}]"
            name, term = _build(setting, label)
            if name in taken:
                owner = "another term" if name in self.configured else f"the task {task.name}"
                raise UserError(
                    f"{label}: the name {name} is that of a metric of {owner}; add a name, such as "
                    f'"name": "{name}_2"'
                )
            self.configured[name] = term
            taken.add(name)
        self.names = (*own, *self.configured)

    def loss(
        self, task: Task, model: Any, batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, LossTerm]]:
        """Summed loss and count of the task, and all terms of a batch."""
        exits: dict[str, LossTerm] = {}
        if self.exits is None:
            result: Any = task.loss(self._observed(model), batch)
        else:
            result, exits = self.exits.loss(task, model, batch)
        loss, count, *own = result
        terms = dict(own[0]) if own else {}
        if undeclared := terms.keys() - {*task.loss_terms}:
            raise undeclared_terms(task, undeclared)
        return loss, count, {**terms, **exits, **self.of_batch(model, batch)}

    def start(self, model: Any, task: Task, tokenizer: Any) -> None:
        """Calls the method `start` of the terms that have one, with what the run trains.

        Raises:
            UserError: a term does not fit the run.
        """
        for component, _ in self.configured.values():
            if hasattr(component, "start"):
                component.start(model, task, tokenizer)

    def _observed(self, model: Any) -> Any:
        """The model that the task computes its loss with, as the terms `observe` it."""
        for component, _ in self.configured.values():
            if hasattr(component, "observe"):
                model = component.observe(model)
        return model

    def of_batch(self, model: Any, batch: Batch) -> dict[str, LossTerm]:
        """The terms of `TrainConfig.loss_terms` for a batch."""
        terms = {}
        for name, (component, weight) in self.configured.items():
            if isinstance(component, nn.Module):
                component.train(model.training)
            result = component(model, batch)
            if not isinstance(result, tuple):
                kind = type(result).__name__
                raise TypeError(f"loss term {name}: returns a {kind}, not a LossTerm or a pair")
            term = LossTerm(*result)
            terms[name] = term._replace(weight=weight * term.weight)
        return terms

    def eval_stats(self, task: Task, model: Any, batch: Batch) -> BatchStats:
        """Sum and count of each term of a validation batch, [2] each."""
        _, loss_count, terms = self.loss(task, model, batch)
        stats = {}
        for name, term in terms.items():
            if term.total is not None:
                count = loss_count if term.count is None else term.count
                total = term.total.detach().float()
                stats[_STATS_KEY + name] = total.new_tensor([float(total), float(count)])
        return stats

    def eval_metrics(self, batch_stats: Sequence[BatchStats]) -> dict[str, float]:
        """Mean of each term over a validation, by name."""
        metrics = {}
        for name in self.names:
            rows = [stats[_STATS_KEY + name] for stats in batch_stats if _STATS_KEY + name in stats]
            if rows:
                total, count = (math.fsum(float(row[i]) for row in rows) for i in (0, 1))
                metrics[name] = total / max(count, 1e-12)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """States of the terms that have one, by name."""
        return {name: dict(part.state_dict()) for name, part in self._stateful().items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Restores a `state_dict`."""
        for name, part in self._stateful().items():
            part.load_state_dict(states[name])

    def _stateful(self) -> dict[str, Any]:
        components = {name: term.component for name, term in self.configured.items()}
        return {name: part for name, part in components.items() if hasattr(part, "state_dict")}


def undeclared_terms(task: Task, names: Any) -> ValueError:
    """Error for a loss with terms that the task does not declare."""
    return ValueError(
        f"task {task.name}: its loss returns the terms {', '.join(sorted(names))}, which its "
        "attribute loss_terms does not list"
    )


def _build(setting: str | Mapping[str, Any], label: str) -> tuple[str, ConfiguredTerm]:
    """Name and term of an item of `TrainConfig.loss_terms`."""
    options = registry.named_options(setting)
    kind, weight = options.pop("type"), options.pop("weight", 1.0)
    name = options.pop("name", kind.rpartition(":")[2])
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise UserError(f"{label}: weight must be a number, not {weight!r}")
    if not isinstance(name, str) or not name:
        raise UserError(f"{label}: name must be a text, not {name!r}")
    component = registry.resolve("loss_term", kind)
    if isinstance(component, type):
        component = registry.build("loss_term", {"type": kind, **options}, label=label, paths=True)
    elif callable(component):
        check_options(component, kind, options, num_args=2, label=label)
        component = partial(component, **options)
    if not callable(component):
        raise UserError(f"{label}: {kind} is no function of model and batch: {component!r}")
    if isinstance(component, nn.Module) and any(p.requires_grad for p in component.parameters()):
        raise UserError(
            f"{label}: {kind} has trainable parameters, which the optimizer does not update; use "
            "buffers for state, and add trained modules to the model with a transform"
        )
    return name, ConfiguredTerm(component, float(weight))
