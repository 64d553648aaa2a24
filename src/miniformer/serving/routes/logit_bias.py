"""The field `logit_bias` as a logits processor."""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.generation.logits_processors import Processor
from miniformer.serving.errors import ApiError

_LIMIT = 100.0


def logit_bias(biases: dict[str, float] | None, vocab_size: int) -> Processor | None:
    """Adds a number to the logits of tokens; None: there is none.

    Args:
        biases: by token id, from -100 to 100.
        vocab_size: of the model.

    Raises:
        ApiError: an id or a number is out of range.
    """
    if not biases:
        return None
    ids, values = [], []
    for name, value in biases.items():
        if not name.isdecimal() or int(name) >= vocab_size:
            raise ApiError(
                f"logit_bias: token id {name!r} is not from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        if not -_LIMIT <= value <= _LIMIT:
            raise ApiError(
                f"logit_bias: {value} is not from -{_LIMIT:g} to {_LIMIT:g}", param="logit_bias"
            )
        ids.append(int(name))
        values.append(value)
    index, bias = torch.tensor(ids), torch.tensor(values)

    def add_bias(tokens: Tensor, logits: Tensor) -> Tensor:
        return logits.index_add(1, index, bias.expand(len(logits), -1).to(logits.dtype))

    return add_bias
