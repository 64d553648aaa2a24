"""Registered optimizers: (model, *, lr, weight_decay, layer_lr_decay, ...) -> torch optimizer.

`layer_lr_decay` is passed only if it is not 1. The options of `optimizer_config` are passed as
keywords. The default of `lr` is used if `TrainConfig.lr` is null.
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
from miniformer.training.optim.roles import optimizer_roles

# beta2 = 0.95, as for GPT-3: with small batches 0.999 follows the gradient scale too slowly.
_DEFAULT_BETAS = (0.9, 0.95)


def default_lr(name: str) -> float:
    """Default learning rate of an optimizer, by its registered name.

    Raises:
        UserError: the optimizer has no default.
    """
    parameter = inspect.signature(registry.get("optimizer", name)).parameters.get("lr")
    if parameter is None or parameter.default is parameter.empty:
        raise UserError(f"optimizer={name} has no default learning rate; set lr")
    return float(parameter.default)


def check_optimizer_options(name: str, options: Iterable[str]) -> None:
    """Checks that an optimizer has these options.

    Raises:
        UserError: it does not have an option; the message has the most similar one.
    """
    parameters = inspect.signature(registry.get("optimizer", name)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters][1:]  # the first is the model
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
    """AdamW (Loshchilov & Hutter 2017), fused if supported."""
    groups = build_param_groups(model, weight_decay=weight_decay, layer_lr_decay=layer_lr_decay)
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(betas), eps=eps, fused=fused)  # type: ignore[arg-type]
    if fused:
        optimizer.register_step_post_hook(_count_changes)
    return optimizer


def _count_changes(optimizer: torch.optim.Optimizer, *args: Any) -> None:
    """Increments the versions of weights, which a fused step leaves; decoding kernels need them."""
    for group in optimizer.param_groups:
        torch.autograd.graph.increment_version([p for p in group["params"] if p.grad is not None])


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
    """Muon for the parameters of that role, AdamW for others; see `Muon`, `optimizer_roles`."""
    roles, parameters = optimizer_roles(model), dict(model.named_parameters())
    muon_ids = {id(parameters[name]) for name, role in roles.items() if role == "muon"}
    groups = []
    for group in build_param_groups(
        model, weight_decay=weight_decay, layer_lr_decay=layer_lr_decay
    ):
        for kind in ("muon", "adamw"):
            params = [p for p in group["params"] if (id(p) in muon_ids) == (kind == "muon")]
            if params:
                groups.append({**group, "params": params, "kind": kind})
    optimizer = Muon(groups, lr=lr, momentum=momentum, steps=steps, betas=betas, eps=eps)
    if not muon_ids:
        optimizer.register_step_post_hook(_count_changes)
    return optimizer


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

    It trains one set of weights and evaluates another, their average. `train` and `eval` switch
    between them, around validation and saving.

    Raises:
        UserError: the package schedulefree is not installed.
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
