"""LossTerm: a named term of the objective in addition to the loss, with its own sum and count."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

_MIN_COUNT = 1e-12  # divisor of a loss without labels


class LossTerm(NamedTuple):
    """A term of the objective, for one batch.

    The objective of an optimizer step is `loss / count`, plus `weight * total / count` of each
    term, where sums and counts are over all batches and devices of the step.

    Attributes:
        total: the sum over the batch, a scalar; None: only `stats`.
        count: the count or weight that it sums over; None: that of the task's loss. A count of its
            own takes a backward pass of its own where gradients are accumulated over batches.
        weight: factor in the objective; 0: the term is only logged. The logged value is
            `total / count`.
        stats: tensors by name, with the same names and shapes in every batch. Their sums over the
            step are an argument of `after_optimizer_step(model, sums)`.
    """

    total: Tensor | None = None
    count: Tensor | float | None = None  # type: ignore[assignment]  # tuple.count
    weight: float = 1.0
    stats: Mapping[str, Tensor] = MappingProxyType({})


# Summed loss, count, and the terms by name.
LossResult = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Mapping[str, LossTerm]]


def combined_loss(result: LossResult) -> tuple[Tensor, Tensor]:
    """A sum and a count whose quotient is the objective of a step with this batch alone."""
    loss, count, *terms = result
    for term in terms[0].values() if terms else ():
        if term.total is not None and term.weight:
            scale = 1.0 if term.count is None else count_ratio(count, term.count)
            loss = loss + term.total * (term.weight * scale)
    return loss, count


def count_ratio(count: Tensor, own: Tensor | float) -> Tensor:
    """`count / own`, finite if a step has nothing to count."""
    divisor = own.clamp_min(_MIN_COUNT) if isinstance(own, Tensor) else max(own, _MIN_COUNT)
    ratio: Tensor = count.clamp_min(_MIN_COUNT) / divisor
    return ratio
