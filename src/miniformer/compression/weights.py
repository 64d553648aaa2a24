"""Matrices of a model that get fewer bits, and their types.

| `to` | matrices of the layers | embeddings of tokens, vocabulary heads, inputs of vectors |
|---|---|---|
| int8 | 8 bits, a scale for 32 weights of a row | 8 bits |
| int4 | 4 bits, a scale for 32 weights of a row | 8 bits |
| bf16, fp16 | bf16, fp16 | bf16, fp16 |

All else stays as it is: norms, biases, positions, types of tokens, heads with `output_dim`, wide
heads but for their tables (`table_types`), and in int8 and int4 a matrix whose number of inputs is
no multiple of 32. Another group than
32 is that of the matrices whose inputs are a multiple of it; `channel` is all inputs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.checkpoint.stored_types import GROUP, INTEGER_FORMS
from miniformer.config import UserError
from miniformer.model.matrices import WeightMatrix, named_components, weight_matrices
from miniformer.model.weight_storage import named_tables

TYPES = ("int8", "int4", "bf16", "fp16")
GROUPS = (32, 64, 128, "channel")
Types = dict[str, dict[str, Any]]  # of matrices by name, see `weight_storage`
_TABLES = ("embedding", "source_embedding")  # last part of the names of embeddings of tokens
_LARGEST_FP16 = 65504.0


def check_type(to: str) -> None:
    """Checks a type of weights.

    Raises:
        UserError: it is unknown.
    """
    if to not in TYPES:
        closest = difflib.get_close_matches(to, TYPES, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise UserError(f"to={to!r} is none of {', '.join(TYPES)}{hint}")


def check_group(group: int | str, to: str) -> int | str:
    """Checks a number of weights with one scale; also one in a string.

    Raises:
        UserError: it is unknown, or `to` has no scales.
    """
    value = int(group) if isinstance(group, str) and group.isdecimal() else group
    if value not in GROUPS or isinstance(value, float | bool):
        raise UserError(f"group={group!r} is none of {', '.join(map(str, GROUPS))}")
    if value != GROUP and to not in ("int8", "int4"):
        raise UserError(f"group is for int8 and int4, and {to} has no scales; leave it out")
    return value


def storage_types(model: nn.Module, to: str, group: int | str = GROUP) -> tuple[Types, list[str]]:
    """The type of each matrix that gets fewer bits, and the names of the others.

    Raises:
        UserError: no matrix fits, or one has weights that the type cannot hold.
    """
    for name, matrix in named_matrices(model).items():
        _check_weight(name, matrix.weight.detach(), to)
    return chosen_types(model, to, group)


def chosen_types(model: nn.Module, to: str, group: int | str = GROUP) -> tuple[Types, list[str]]:
    """`storage_types` by names and shapes alone, also of a model without values.

    Raises:
        UserError: no matrix fits.
    """
    types: Types = {}
    unchanged = []
    for name, matrix in named_matrices(model).items():
        if not _is_stored(model, name, matrix, to):
            unchanged.append(name)
        elif to in ("bf16", "fp16"):
            types[name] = {"type": "short_float", "form": to}
        else:
            bits = 4 if to == "int4" and matrix.layer is not None else 8
            types[name] = {"type": "integers", "bits": bits}
            width = matrix.weight.shape[-1]
            size = width if group == "channel" else int(group)
            if size != GROUP and width % size == 0:
                types[name]["group"] = size
    if not types:
        raise UserError(
            f"no matrix has a multiple of {GROUP} inputs, which {to} needs; use bf16 or fp16"
        )
    return types, unchanged


def table_types(model: nn.Module, to: str) -> Types:
    """The types of tables (`stored_tables` of a module), in which they have half of their bytes.

    Floats are fp16, or bf16 if `to` is; integers have the smallest type that holds them.
    """
    types: Types = {}
    for name, _, table in named_tables(model):
        low, high = (float(x) for x in table.aminmax()) if table.numel() else (0.0, 0.0)
        if table.is_floating_point():
            form = "bf16" if to == "bf16" else "fp16"
            if form == "bf16" or max(-low, high) <= _LARGEST_FP16:
                types[name] = {"type": "short_float", "form": form}
            continue
        for form, dtype in INTEGER_FORMS.items():
            limits = torch.iinfo(dtype)
            if limits.min <= low and high <= limits.max:
                types[name] = {"type": "short_integers", "form": form}
                break
    return types


def rounded_weight(weight: Tensor, item: Mapping[str, Any]) -> Tensor:
    """The weights that a stored type holds, float32 [O, I]."""
    storage, options = registry.get("weight_storage", item["type"]), dict(item)
    del options["type"]
    decoded: Tensor = storage.decode(storage.encode(weight, **options), **options)
    return decoded.float()


def named_matrices(model: nn.Module) -> dict[str, WeightMatrix]:
    """Matrices and embeddings by name."""
    matrices = {matrix.name: matrix for matrix in weight_matrices(model)}
    for path, module in named_components(model):
        if isinstance(module, nn.Embedding):
            matrices[path] = WeightMatrix(
                path, module, module._parameters["weight"], f"{path}.weight"
            )
    return matrices


def check_finite(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Checks weights by name.

    Raises:
        UserError: one is NaN or infinite.
    """
    for name, weight in weights:
        if not weight.isfinite().all():
            raise UserError(f"{name}: has weights that are not finite; train the model again")


def _check_weight(name: str, weight: Tensor, to: str) -> None:
    check_finite([(name, weight)])
    largest = float(weight.abs().max())
    if to == "fp16" and largest > _LARGEST_FP16:
        raise UserError(
            f"{name}: has the weight {largest:.4g}, and fp16 holds {_LARGEST_FP16:,.0f} at most; "
            "use bf16"
        )


def _is_stored(model: Any, name: str, matrix: WeightMatrix, to: str) -> bool:
    if matrix.parameter is None or name.split(".")[0] == "wide_head":
        return False
    if isinstance(matrix.module, nn.Embedding) and name.rpartition(".")[2] not in _TABLES:
        return False
    if name == "head" and model.config.output_dim is not None:
        return False
    return to in ("bf16", "fp16") or matrix.weight.shape[-1] % GROUP == 0
