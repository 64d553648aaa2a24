"""Losses of exits after each layer, with layer dropout (LayerSkip, Elhoushi et al. 2024)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from miniformer.config import UserError
from miniformer.config.early_exit import EarlyExitConfig
from miniformer.data.batching.length_bucketing import Batch
from miniformer.model.layer_exits import LayerExits
from miniformer.model.stack import Stack
from miniformer.tasks.base import Task
from miniformer.tasks.loss_terms import LossTerm


class ExitLosses:
    """Terms `exit_1`, `exit_2`, ...: the task's loss of the output of a layer.

    The final norm and the head of the model read the output of the layer, as they read that of the
    last one.

    Args:
        model: the model.
        task: the task.
        config: weights and dropout.

    Attributes:
        names: names of the terms.

    Raises:
        UserError: the model has fewer than 2 layers, or the task does not support exits.
    """

    def __init__(self, model: Any, task: Task, config: EarlyExitConfig) -> None:
        stack = getattr(model, "decoder", model)
        if not isinstance(stack, Stack):
            raise UserError(f"early_exit: a {type(model).__name__} has no stack of layers")
        if type(task).step is not Task.step:
            raise UserError(f"early_exit: the task {task.name} has a step of its own; leave it out")
        count = len(stack.layers)
        if count < 2:
            raise UserError(f"early_exit: the model has {count} layers; exits need at least 2")
        self._weights = config.weights(count)
        self._rates = config.dropout_rates(count)
        self.names = tuple(f"exit_{n}" for n in range(1, count))

    def loss(self, task: Task, model: Any, batch: Batch) -> tuple[Any, dict[str, LossTerm]]:
        """The result of `Task.loss`, and the terms of the exits."""
        terms = {}
        with self._exits(model) as (exits, encoders):
            result = task.loss(model, batch)
            for n, (name, weight) in enumerate(zip(self.names, self._weights, strict=True), 1):
                with contextlib.ExitStack() as replays:
                    replays.enter_context(exits.replay(n))
                    for encoder in encoders:
                        replays.enter_context(encoder.replay(0))
                    loss: Tensor = task.loss(model, batch)[0]
                terms[name] = LossTerm(loss, None, weight)
        return result, terms

    @contextlib.contextmanager
    def _exits(self, model: Any) -> Iterator[tuple[LayerExits, list[LayerExits]]]:
        """Context in which the stacks of a model have exits: that of the head, and encoders."""
        last = getattr(model, "decoder", model)
        stacks = [module for module in model.modules() if isinstance(module, Stack)]
        try:
            for stack in stacks:
                stack.exits = LayerExits(self._rates if stack is last else ())
            encoders = [stack.exits for stack in stacks if stack is not last and stack.exits]
            yield last.exits, encoders
        finally:
            for stack in stacks:
                stack.exits = None
