"""Transforms of a built model: `(model, **options) -> model`, such as LoRA or quantized layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.model.matrices import named_components
from miniformer.model.ops.linear import effective_weight

Model = TypeVar("Model", bound=nn.Module)


def apply_transforms(model: Model, transforms: Sequence[str | Mapping[str, Any]]) -> Model:
    """Applies transforms in order, and notes them in `model.transforms`, which is saved.

    A transform is applied whenever the model is built, also on the meta device: the modules and
    names that it makes may depend on its options and the config, not on values of weights.

    Args:
        model: a Transformer or Seq2SeqTransformer.
        transforms: each a registered name, or `{"type": name, options}`.

    Returns:
        The last transform's result.

    Raises:
        UserError: a transform is unknown, does not have an option, or returns no model.
    """
    for transform in transforms:
        setting = copy.deepcopy(registry.named_options(transform, "transforms"))
        earlier = getattr(model, "transforms", ())
        result = registry.build("transform", setting, model, label="transforms")
        if type(result) is not type(model):
            raise UserError(
                f"transforms: {setting['type']} returns a {type(result).__name__}, not a "
                f"{type(model).__name__}; return the model"
            )
        model = result
        model.transforms = (*earlier, setting)  # type: ignore[assignment]
    return model


def describe_transforms(model: nn.Module) -> str:
    """One line about the transforms of a model and the parameters that remain to be trained."""
    names = ", ".join(transform["type"] for transform in getattr(model, "transforms", ()))
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    total = sum(size for size, _ in sizes)
    return f"transforms: {names}; {trained:,} of {total:,} parameters are trained"


def effective_state_dict(model: Any) -> dict[str, Tensor]:
    """Weights of a model by the names that it has without transforms; exporters use them.

    Linear-like modules have their effective weights.

    Raises:
        UserError: a transform adds something that no weight of the model expresses.
    """
    weights: dict[str, Tensor] = dict(model.state_dict())
    parts: list[tuple[str, Any]] = list(named_components(model))
    merged = [(path, part) for path, part in parts if hasattr(part, "effective_weight")]
    if not merged and not model.transforms:
        return weights
    with torch.device("meta"):
        plain = type(model)(model.config).state_dict()
    for path, part in merged:
        own = [name for name in weights if name.startswith(f"{path}.")]
        for name in own:
            if name != f"{path}.bias":
                del weights[name]
        weights[f"{path}.weight"] = effective_weight(part).detach()
        if f"{path}.bias" in weights:
            weights[f"{path}.bias"] = part.bias.detach()
    if different := sorted(weights.keys() ^ plain.keys()):
        names = [transform["type"] for transform in model.transforms]
        raise UserError(
            f"the model cannot be expressed without its transforms ({', '.join(names)}): "
            f"{different[0]!r} is {'added' if different[0] in weights else 'missing'}"
        )
    return {name: weights[name] for name in plain}


def merge_transforms(model: Model) -> Model:
    """A model without transforms and with the effective weights; see `effective_state_dict`."""
    weights = effective_state_dict(model)
    with torch.device("meta"):
        merged: Model = type(model)(model.config)
    merged.load_state_dict({name: x.clone() for name, x in weights.items()}, assign=True)
    return merged.train(model.training)
