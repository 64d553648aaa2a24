"""Penalized linear model of features with the loss of a task.

The fit minimizes the task's own loss plus an L2 penalty, which is convex for all tasks with a wide
head, by L-BFGS over all examples. A fifth of the examples selects the penalty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.config import TransformerConfig
from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.base import Task
from miniformer.training.tuning.wide_head.data import FixedOutputs
from miniformer.training.tuning.wide_head.matrix import FeatureMatrix

# The L2 penalty of n examples is 1 / (strength * n): the C of other libraries.
STRENGTHS = (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)
DEFAULT_STRENGTH = 4.0  # for too few examples to select one
_HELD_OUT_SHARE = 0.2
_MIN_EXAMPLES = 20  # with fewer, no part is held out
_MAX_ITERATIONS = 60
_MIN_THRESHOLD_STEP = 1e-3  # between the biases of ordered outputs

Solution = tuple[Tensor, Tensor]  # weight [K, C] and bias [C]; ordered outputs: [K, 1] and [C]


class Selection(NamedTuple):
    """Strength with the lowest loss on held-out examples.

    Args:
        strength: the strength.
        loss: on the held-out examples.
        metrics: of the task on them.
        solution: of the other examples.
    """

    strength: float
    loss: float
    metrics: dict[str, float]
    solution: tuple[Tensor, Tensor]


class LinearProblem:
    """Penalized loss of a linear model over some examples.

    Args:
        config: of the model.
        task: has the loss.
        features: of the examples, [n, K].
        labels: of `Task.wide_labels`, with n rows.
    """

    def __init__(
        self, config: TransformerConfig, task: Task, features: FeatureMatrix, labels: Batch
    ) -> None:
        self.task, self.features, self.labels = task, features, labels
        self.config, self.outputs = config, FixedOutputs(config)

    def zeros(self) -> Solution:
        """The solution of weight 0 and with biases that are 0, or descending if outputs are."""
        count, ordered = self.config.output_dim or 1, self.config.ordered_outputs
        bias = -torch.arange(count).float() if ordered else torch.zeros(count)
        return torch.zeros(self.features.shape[1], 1 if ordered else count), bias

    def loss(self, solution: Solution) -> tuple[Tensor, Tensor]:
        """Summed loss and its count."""
        self.outputs.value = self.features @ solution[0] + solution[1]
        return self.task.loss(self.outputs, self.labels)[:2]

    def metrics(self, solution: Solution) -> dict[str, float]:
        """The task's metrics."""
        self.outputs.value = self.features @ solution[0] + solution[1]
        return self.task.compute_metrics([self.task.eval_step(self.outputs, self.labels)])

    def solve(self, strength: float, start: Solution) -> Solution:
        """Weight and bias with the lowest loss; the bias has no penalty."""
        weight = start[0].clone().requires_grad_()
        free = self._free_bias(start[1]).requires_grad_()
        penalty = 1 / (strength * self.features.shape[0])
        optimizer = torch.optim.LBFGS(
            [weight, free],
            max_iter=_MAX_ITERATIONS,
            history_size=8,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            bias = self._bias(free)
            outputs = (self.features @ weight.detach() + bias.detach()).requires_grad_()
            self.outputs.value = outputs
            loss, count, *_ = self.task.loss(self.outputs, self.labels)
            loss = loss / count.clamp_min(1e-12)
            (gradient,) = torch.autograd.grad(loss, outputs)
            (free.grad,) = torch.autograd.grad(bias, free, gradient.sum(0))
            if weight.shape[1] < gradient.shape[1]:  # ordered outputs share a score
                gradient = gradient.sum(1, keepdim=True)
            weight.grad = self.features.transposed_product(gradient) + penalty * weight.detach()
            return loss.detach() + penalty / 2 * weight.detach().square().sum()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return weight.detach(), self._bias(free).detach()

    def _bias(self, free: Tensor) -> Tensor:
        """Biases from free parameters: descending for ordered outputs."""
        if not self.config.ordered_outputs:
            return free * 1.0
        steps = F.softplus(free[1:]) + _MIN_THRESHOLD_STEP
        return torch.cat([free[:1], -steps]).cumsum(0)

    def _free_bias(self, bias: Tensor) -> Tensor:
        """Inverse of `_bias`."""
        if not self.config.ordered_outputs:
            return bias.clone()
        steps = (-bias.diff() - _MIN_THRESHOLD_STEP).clamp_min(1e-6)
        return torch.cat([bias[:1], torch.expm1(steps).log()])


def select_strength(
    config: TransformerConfig, task: Task, features: FeatureMatrix, labels: Batch
) -> Selection | None:
    """Strength with the lowest loss on a fifth of the examples; None: they are too few."""
    examples = features.shape[0]
    if examples < _MIN_EXAMPLES:
        return None
    order = np.random.default_rng(0).permutation(examples)
    parts = np.split(order, [int(examples * _HELD_OUT_SHARE)])
    test, problem = (
        LinearProblem(
            config,
            task,
            features.select(rows),
            {name: value[rows] for name, value in labels.items()},
        )
        for rows in map(torch.from_numpy, parts)
    )
    solution, best = problem.zeros(), None
    for strength in STRENGTHS:
        solution = problem.solve(strength, solution)
        loss, count = test.loss(solution)
        if best is not None and not loss / count < best.loss:
            break
        best = Selection(strength, float(loss / count), test.metrics(solution), solution)
    return best
