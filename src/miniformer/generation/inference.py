"""Models in use, not in training: eval mode, and copies with another type of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from miniformer import registry


@contextlib.contextmanager
def eval_mode(*models: Any) -> Iterator[None]:
    """Sets eval mode; on exit restores the mode of each module, since they may differ."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.train(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def inference_model(model: Any, weight_dtype: str) -> Any:
    """The model, or a copy for passes without gradients that computes with another type of weights.

    It is that of the last registered function of the kind `inference_model` that applies.

    Args:
        model: the model, which is not changed. The copy has its methods, but does not decode.
        weight_dtype: see `GenerationConfig`.

    Raises:
        UserError: the model has no matrix of the type.
    """
    if weight_dtype == "float32":
        return model
    for _, make in registry.load_all("inference_model", last_first=True):
        copied = make(model, weight_dtype)
        if copied is not None:
            return copied
    return model
