"""Passes that end after the first layers, and their completion.

Letters: R rows, N tokens, D model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError


@dataclasses.dataclass
class PartialPass:
    """The last tokens of a cache, which only the first layers have read.

    Attributes:
        hidden: input of the first of the other layers, [R, N, D].
        num_layers: number of layers that have read the tokens.
    """

    hidden: Tensor
    num_layers: int

    @classmethod
    def extend(cls, earlier: PartialPass | None, hidden: Tensor, num_layers: int) -> PartialPass:
        """Adds tokens, [R, n, D], to the earlier ones."""
        if earlier is None:
            return cls(hidden, num_layers)
        if earlier.num_layers != num_layers:
            raise ValueError(
                f"the earlier tokens were read by {earlier.num_layers} layers, not {num_layers}"
            )
        return cls(torch.cat((earlier.hidden, hidden), 1), num_layers)


def stack_of(model: Any) -> Any:
    """The stack of layers before the head: the decoder of an encoder-decoder model."""
    return getattr(model, "decoder", model)


def check_num_layers(model: Any, num_layers: int) -> None:
    """Checks that `num_layers` is a proper part of the layers of a model.

    Raises:
        UserError: it is not.
    """
    total = len(stack_of(model).layers)
    if not 1 <= num_layers < total:
        limit = f"N must be 1 to {total - 1}" if total > 1 else "a draft needs at least 2"
        raise UserError(f"draft layers:{num_layers}: the model has {total} layers; {limit}")


def read_first_layers(
    model: Any, tokens: Tensor, memory: Sequence[Any], cache: Any, num_layers: int
) -> Tensor:
    """Appends tokens, int [R, N], to the cache of the first layers; returns [R, N, D]."""
    hidden: Tensor = model.features(tokens, *memory, cache=cache, stop=num_layers)
    cache.end_pass()
    return hidden


def read_other_layers(
    model: Any, hidden: Tensor, memory: Sequence[Any], cache: Any, num_layers: int
) -> Tensor:
    """Completes the last N tokens of the cache: [R, N, D] -> features, [R, N, D]."""
    cache.trim(cache.length - hidden.shape[1])
    cache.extend(None, hidden.shape[1])
    options = {"memory": memory[0]} if memory else {}
    features: Tensor = stack_of(model).run_layers(hidden, start=num_layers, cache=cache, **options)
    return features
