"""Gradients of single examples, for private training, influence and data selection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from miniformer.data.batching.length_bucketing import Batch
from miniformer.model.attention import MultiHeadAttention
from miniformer.tasks.base import Task

_NON_EXAMPLE_KEYS = ("about", "records")  # of a batch


class ExampleLosses(nn.Module):
    """`Task.example_losses` as a module, for `torch.func.functional_call`.

    Args:
        model: the model; its parameters have the prefix `model.`.
        task: computes the losses.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> Tensor:
        """Losses of the examples, [B]."""
        return self.task.example_losses(self.model, batch)


def example_gradients(model: nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the loss of each example, [B, ...] by the name of the parameter.

    Their sum is the gradient of the summed loss. All B gradients are in memory.

    Args:
        model: the model; each example has dropout of its own in training mode.
        task: has `example_losses`.
        batch: a batch of the task: its tensors have a row for each example.

    Raises:
        UserError: the task has no losses of single examples.
    """
    losses = ExampleLosses(model, task)
    trained = {name: p.detach() for name, p in losses.named_parameters() if p.requires_grad}
    examples = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and name not in _NON_EXAMPLE_KEYS
    }

    def loss(parameters: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
        rows = {name: value[None] for name, value in example.items()}
        result: Tensor = functional_call(losses, parameters, (rows,))[0]
        return result

    with _plain_attention(model):
        gradients: dict[str, Tensor] = vmap(grad(loss), (None, 0), randomness="different")(
            trained, examples
        )
    return {name.removeprefix("model."): value for name, value in gradients.items()}


@contextlib.contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Context in which attention is eager, which `vmap` takes without a loop over examples."""
    modules: list[Any] = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    backends = [module.backend for module in modules]
    try:
        for module in modules:
            module.backend = "plain"
        yield
    finally:
        for module, backend in zip(modules, backends, strict=True):
            module.backend = backend
