"""Optimisers by name: (model, *, lr, weight_decay, layer_lr_decay, ...) -> torch optimiser.

`layer_lr_decay` is given only where it is not 1, and what a user says in `optimizer_config`. The
default of `lr` is what a run has that says none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.training.optim.muon import Muon
from miniformer.training.optim.param_groups import build_param_groups

# beta2 = 0.95, as for GPT-3: small batches make 0.999 too slow to follow the gradient's size.
_DEFAULT_BETAS = (0.9, 0.95)


def default_lr(name: str, *, from_scratch: bool = True) -> float:
    """The learning rate of an optimiser where none is said.

    Args:
        name: its registered name.
        begins_anew: whether weights are random; weights that were trained get a tenth of it.

    Raises:
        UserError: it has none of its own.
    """
    own = inspect.signature(registry.get("optimizer", name)).parameters.get("lr")
    if own is None or own.default is own.empty:
        raise UserError(f"optimizer={name} has no learning rate of its own; set lr")
    lr = float(own.default)
    return lr if from_scratch else lr / 10


def check_optimizer_options(name: str, options: Iterable[str]) -> None:
    """Refuses options that an optimizer does not take.

    Raises:
        UserError: it names the nearest one.
    """
    parameters = inspect.signature(registry.get("optimizer", name)).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    known = [each.name for each in parameters][1:]  # the first is the model
    for option in options:
        if option not in known:
            raise UserError(
                registry.unknown_name_message(
                    f"option of optimizer={name} in optimizer_config", option, known
                )
            )


def adamw(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    weight_decay: float,
    layer_lr_decay: float = 1.0,
    betas: tuple[float, float] = _DEFAULT_BETAS,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2017), fused where it can be."""
    groups = build_param_groups(model, weight_decay=weight_decay, layer_lr_decay=layer_lr_decay)
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=fused)  # type: ignore[arg-type]


def muon(
    model: nn.Module,
    *,
    lr: float = 5e-3,
    weight_decay: float,
    layer_lr_decay: float = 1.0,
    momentum: float = 0.95,
    steps: int = 3,
    betas: tuple[float, float] = _DEFAULT_BETAS,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Muon for the linear maps within layers, AdamW for the rest; see `muon`."""
    inner = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}."
    }
    groups = []
    for group in build_param_groups(
        model, weight_decay=weight_decay, layer_lr_decay=layer_lr_decay
    ):
        for kind, of_kind in (("muon", True), ("adamw", False)):
            some = [p for p in group["params"] if (id(p) in inner) == of_kind]
            if some:
                groups.append({**group, "params": some, "kind": kind})
    return Muon(groups, lr=lr, momentum=momentum, steps=steps, betas=betas, eps=eps)


def schedulefree(
    model: nn.Module,
    *,
    lr: float = 2e-3,
    weight_decay: float,
    layer_lr_decay: float = 1.0,
    betas: tuple[float, float] = _DEFAULT_BETAS,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW without a schedule (Defazio et al. 2024, arXiv 2405.15682).

    It trains at one point and is good at another, an average: `train` and `eval` change between
    them, which the trainer does around validation and saving.

    Raises:
        UserError: the package schedulefree is missing.
    """
    try:
        from schedulefree import AdamWScheduleFree  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise UserError(
            'optimizer=schedulefree needs the package schedulefree; pip install "miniformer[optim]"'
        ) from None
    groups: list[dict[str, Any]] = build_param_groups(
        model, weight_decay=weight_decay, layer_lr_decay=layer_lr_decay
    )
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=lr, betas=tuple(betas), eps=eps)
    return optimizer
