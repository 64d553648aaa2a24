"""Gradients of backward against differences of the outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.doctor.inputs import ModelInputs
from miniformer.doctor.outcome import NotApplicable, Note

_ROWS = 2
_STEP = 1e-5
_TOLERANCE = 1e-4
_MAX_PARAMETERS = 50_000_000  # of a copy in float64
_MAX_TENSORS = 24  # checked one by one, evenly spaced


def check_gradients(model: Any) -> list[str]:
    """Gradients equal central differences in float64.

    A tensor's gradient is compared along one random direction, relative to its norm.
    """
    count = sum(weight.numel() for weight in model.parameters())
    if count > _MAX_PARAMETERS:
        raise NotApplicable(f"a copy in float64 of {count:,} parameters takes too long")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        copied = copy.deepcopy(model).double().eval()
        for weight in copied.parameters():
            weight.requires_grad_(weight.is_floating_point())
        return [*_problems(copied)]


def _problems(model: nn.Module) -> Iterator[str]:
    inputs = ModelInputs(model)
    x = inputs.inputs(_ROWS, inputs.source_length if inputs.seq2seq else inputs.length)
    target = inputs.ids(_ROWS, inputs.length) if inputs.seq2seq else None
    weights = torch.randn_like(inputs.call(x, target=target))  # of the outputs in the sum

    def total() -> Tensor:
        return (inputs.call(x, target=target) * weights).sum()

    torch.autograd.backward(total())
    parameters = model.named_parameters()
    named = [(name, w, w.grad) for name, w in parameters if w.grad is not None]
    step = max(1, len(named) // _MAX_TENSORS)
    # Some gradients are zero, such as that of a key bias, which moves all scores of a query.
    smallest = 1e-3 * max(float(gradient.norm()) for _, _, gradient in named)
    worst = 0.0
    for name, weight, gradient in named[::step]:
        direction = torch.randn_like(weight)
        direction /= direction.norm()
        expected = _difference(total, weight, direction)
        actual = float((gradient * direction).sum())
        error = abs(actual - expected) / max(abs(expected), float(gradient.norm()), smallest)
        worst = max(worst, error)
        if not error <= _TOLERANCE:
            yield f"{name}: the gradient along a direction is {actual:.6g}, not {expected:.6g}"
    yield Note(f"{len(named[::step])} tensors; largest difference {worst:.1e} of a gradient")


@torch.no_grad()
def _difference(total: Callable[[], Tensor], weight: Tensor, direction: Tensor) -> float:
    """Central difference of `total` along a direction of a weight."""
    original = weight.clone()
    results = []
    for sign in (1.0, -1.0):
        weight.copy_(original + sign * _STEP * direction)
        results.append(float(total()))
    weight.copy_(original)
    return (results[0] - results[1]) / (2 * _STEP)
