"""Optimizer roles: which parameters Muon and AdamW update, and which are frozen."""

from __future__ import annotations

from typing import Any

from torch import nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.model.matrices import weight_matrices

ROLES = ("muon", "adamw", "frozen")


def optimizer_roles(model: nn.Module) -> dict[str, str]:
    """The role of each parameter by name: muon, adamw or frozen.

    A parameter or a module may have an attribute `optimizer_role`; that of the parameter counts,
    then that of the innermost module. Without one, weight matrices within layers are for Muon and
    other parameters for AdamW. A parameter without `requires_grad` is frozen. Optimizers other
    than muon update the parameters of both roles.

    Raises:
        UserError: a role does not exist, or Muon is to update a vector.
    """
    matrices = {id(m.parameter) for m in weight_matrices(model) if m.layer is not None}
    given: dict[str, str] = {}
    modules: list[tuple[str, Any, Any]] = [("", model, getattr(model, "optimizer_role", None))]
    while modules:
        path, module, role = modules.pop()
        for name, parameter in module.named_parameters(path, recurse=False):
            given.setdefault(name, getattr(parameter, "optimizer_role", role))
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            modules.append((child_path, child, getattr(child, "optimizer_role", role)))
    roles = {}
    for name, parameter in model.named_parameters():
        role = given[name]
        if role is None:
            role = "muon" if id(parameter) in matrices else "adamw"
        if role not in ROLES:
            known = list(ROLES)
            raise UserError(
                f"{name}: {registry.unknown_name_message('optimizer_role', role, known)}"
            )
        if role == "muon" and parameter.dim() < 2:
            raise UserError(
                f"{name}: optimizer_role=muon is for matrices, not for {list(parameter.shape)}; "
                "set adamw"
            )
        roles[name] = role if parameter.requires_grad else "frozen"
    return roles


def freeze_parameters(model: nn.Module) -> None:
    """Sets `requires_grad` of the frozen parameters to False.

    They get no gradient and have no optimizer state and no average.

    Raises:
        UserError: no parameter remains, or a role is invalid.
    """
    roles, parameters = optimizer_roles(model), dict(model.named_parameters())
    for name, role in roles.items():
        if role == "frozen":
            parameters[name].requires_grad_(False)
    if roles and all(role == "frozen" for role in roles.values()):
        raise UserError(
            "no parameter of the model is trained: all have optimizer_role=frozen or "
            "requires_grad=False"
        )
