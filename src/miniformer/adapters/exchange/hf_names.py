"""Adapters under the names of a Hugging Face family, in both directions.

A family may store several matrices as one, such as `c_attn` of GPT-2. One LoRA of the stacked ranks
has their outputs: A are the rows of all A, and B has each B in the rows of its matrix and in the
columns of its A. In the other direction, the matrices share A.

Letters: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.adapters.modules import AdaptedMatrix
from miniformer.adapters.settings import AdapterSettings, Ia3Settings, LoraSettings
from miniformer.adapters.tensors import join_name, split_name, targets_of
from miniformer.checkpoint.directory import read_hf_metadata
from miniformer.config import UserError
from miniformer.interop.hf.export import select_family
from miniformer.interop.hf.weights import (
    STACKED_TRANSPOSED,
    TRANSPOSED,
    TensorMapping,
    map_tensors,
)
from miniformer.model.seq2seq import Seq2SeqTransformer

_WEIGHT = ".weight"
Named = tuple[AdapterSettings, dict[str, Tensor]]


class HfPlan(NamedTuple):
    """Tensors of a model and of the class of its family.

    Args:
        mappings: of each tensor of the class.
        class_name: the class.
    """

    mappings: list[TensorMapping]
    class_name: str


def hf_plan(
    model: Any, *, model_type: str | None, backbone: bool = False, per_token: bool = False
) -> HfPlan:
    """Names of the weights of a model in its family.

    Args:
        model: the model.
        model_type: the family that is tried first.
        backbone: names of the backbone alone, without the prefix of the family.
        per_token: true if the model classifies tokens.

    Raises:
        UserError: no family fits.
    """
    with torch.device("meta"):
        plain = type(model)(model.config).state_dict()
    family, name, _ = select_family(
        model.config,
        seq2seq=isinstance(model, Seq2SeqTransformer),
        model_type=model_type,
        per_token=per_token,
    )
    shapes = {key: tensor.shape for key, tensor in plain.items()}
    mappings = map_tensors(family.weight_rules(name, model.config), shapes)
    if backbone or family.model_classes[name].is_backbone:
        mappings = [
            dataclasses.replace(item, hf_name=item.hf_name.removeprefix(family.prefix))
            for item in mappings
        ]
    return HfPlan(mappings, name)


def to_native(
    model: Any,
    base: Path | None,
    settings: AdapterSettings,
    tensors: dict[str, Tensor],
    path: Path,
) -> Named:
    """Settings and tensors of an adapter under the names of a model.

    Args:
        model: the model.
        base: its directory, which names its family if it was imported.
        settings, tensors: under the names of the family, or of the model already.
        path: the adapter, for messages.

    Raises:
        UserError: a tensor is of no module of the model.
    """
    modules = {split_name(key)[0] for key in tensors}
    own = {name for name, _ in model.named_modules()} | {
        name for name, _ in model.named_parameters()
    }
    if modules <= own:
        return settings, tensors
    metadata = {} if base is None else read_hf_metadata(base)
    unknown = modules - own
    for backbone in (False, True):
        plan = hf_plan(model, model_type=metadata.get("model_type"), backbone=backbone)
        known = {item.hf_name.removesuffix(_WEIGHT) for item in plan.mappings}
        known |= {item.hf_name for item in plan.mappings}
        if modules <= known:
            return _rename_to_native(plan.mappings, settings, tensors)
        unknown = min(unknown, modules - known, key=len)  # of the names that fit best
    raise UserError(
        f"{path}: {min(unknown)} is no module of this base, which is a {plan.class_name} in the "
        "names of transformers"
    )


def _rename_to_native(
    mappings: Sequence[TensorMapping], settings: AdapterSettings, tensors: dict[str, Tensor]
) -> Named:
    renamed: dict[str, Tensor] = {}
    new_names: dict[str, str] = {}  # of the model -> of the family
    for item in mappings:
        if item.hf_name in tensors:
            parts = item.layout.split(tensors[item.hf_name], item.shapes)
            renamed |= dict(zip(item.names, parts, strict=True))
        module = item.hf_name.removesuffix(_WEIGHT)
        if not item.hf_name.endswith(_WEIGHT):
            continue
        own = {
            parameter: tensor
            for key, tensor in tensors.items()
            for path, parameter in [split_name(key)]
            if path == module and parameter is not None
        }
        names = [name.removesuffix(_WEIGHT) for name in item.names]
        new_names |= dict.fromkeys(names, module) if own else {}
        for parameter, tensor in own.items():
            for name, part in zip(names, _split(item, parameter, tensor), strict=True):
                renamed[join_name(name, parameter)] = part
    renamed = {key: tensor.contiguous() for key, tensor in renamed.items()}
    return _rename_settings(settings, new_names, renamed), renamed


def _split(item: TensorMapping, parameter: str, tensor: Tensor) -> list[Tensor]:
    """A tensor of a part for each of the matrices that the family stores as one."""
    if len(item.names) == 1:
        return [tensor]
    is_rows = parameter in ("lora_B", "magnitude") or (parameter == "ia3_l" and len(tensor) > 1)
    if not is_rows:  # of the inputs, which the matrices share
        return [tensor.clone() for _ in item.names]
    rows = tensor[:, None] if parameter == "magnitude" else tensor  # [O, R or 1]
    shapes = [torch.Size((shape[0], rows.shape[1])) for shape in item.shapes]
    parts = item.layout.split(rows.t() if _is_transposed(item) else rows, shapes)
    return [part[:, 0] if parameter == "magnitude" else part for part in parts]


def _rename_settings(
    settings: AdapterSettings, new_names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> AdapterSettings:
    modules = dict.fromkeys(key.rpartition(".")[0] for key in tensors if split_name(key)[1] is None)
    saved: dict[str, Any] = {"modules_to_save": [*modules]}
    if isinstance(settings, Ia3Settings):
        inputs = [name for name, old in new_names.items() if old in settings.input_names]
        outputs = [name for name in new_names if name not in inputs]
        return dataclasses.replace(settings, targets=outputs, input_targets=inputs, **saved)
    assert isinstance(settings, LoraSettings)
    ranks = {name: settings.rank(old) for name, old in new_names.items()}
    scales = {name: settings.scale(old) for name, old in new_names.items()}
    targets = [*targets_of(tensors)]
    return _with_scales(dataclasses.replace(settings, targets=targets, **saved), ranks, scales)


def _with_scales(
    settings: LoraSettings, ranks: Mapping[str, int], scales: Mapping[str, float]
) -> LoraSettings:
    """Settings with these ranks and factors of the products by name."""
    alphas = {
        name: scales[name] * (math.sqrt(rank) if settings.rslora else rank)
        for name, rank in ranks.items()
    }
    plain = dataclasses.replace(settings, rank_pattern={}, alpha_pattern={})
    return dataclasses.replace(
        plain,
        rank_pattern={name: rank for name, rank in ranks.items() if rank != plain.r},
        alpha_pattern={
            name: alpha
            for name, alpha in alphas.items()
            if not math.isclose(alpha, plain.alpha, rel_tol=1e-12)
        },
    )


def to_family(
    model: Any, plan: HfPlan, settings: AdapterSettings, tensors: Mapping[str, Tensor]
) -> tuple[AdapterSettings, dict[str, Tensor], bool]:
    """Settings and tensors of an adapter under the names of a family.

    Args:
        model: the model, whose rows have the lengths of matrices without an adapter (DoRA).
        plan: see `hf_plan`.
        settings, tensors: under the names of the model.

    Returns:
        Both, and true if the family stores the transposed matrices.

    Raises:
        UserError: a family's tensor cannot express what the adapter does to parts of it.
    """
    renamed: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    used: set[str] = set()
    transposed = False
    inputs = []
    for item in plan.mappings:
        names = [name.removesuffix(_WEIGHT) for name in item.names]
        if present := [name for name in item.names if name in tensors]:
            if len(present) < len(item.names):
                raise UserError(f"{item.hf_name} needs all of {', '.join(item.names)}")
            renamed[item.hf_name] = item.layout.join([tensors[name] for name in item.names])
            used |= {*item.names}
        own = [_own_tensors(tensors, name) for name in names]
        if not any(own) or not item.hf_name.endswith(_WEIGHT):
            continue
        module = item.hf_name.removesuffix(_WEIGHT)
        used |= {join_name(n, p) for n, part in zip(names, own, strict=True) for p in part}
        transposed = transposed or _is_transposed(item)
        if isinstance(settings, LoraSettings):
            given = [settings.scale(name) for name in names]
            parts, rank, scale = _join_lora(item, names, own, given, model)
            if rank:  # not of rows of new tokens alone
                ranks[module], scales[module] = rank, scale
        else:
            parts = _join_factors(item, own)
            if len(parts["ia3_l"]) == 1:
                inputs.append(module)
        renamed |= {join_name(module, key): part for key, part in parts.items()}
    if left := sorted(tensors.keys() - used):
        raise UserError(f"{plan.class_name} of transformers has no place for {left[0]}")
    renamed = {key: tensor.contiguous() for key, tensor in renamed.items()}
    targets = [*targets_of(renamed)]
    if isinstance(settings, LoraSettings):
        plain = dataclasses.replace(settings, init="default", targets=targets)
        return _with_scales(plain, ranks, scales), renamed, transposed
    assert isinstance(settings, Ia3Settings)
    outputs = [name for name in targets if name not in inputs]
    result = dataclasses.replace(settings, targets=outputs, input_targets=inputs)
    return result, renamed, transposed


def _own_tensors(tensors: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    start = f"{module}."
    keys = [key for key in tensors if key.startswith(start) and split_name(key)[0] == module]
    return {str(split_name(key)[1]): tensors[key] for key in keys}


def _join_lora(
    item: TensorMapping,
    names: Sequence[str],
    own: Sequence[dict[str, Tensor]],
    scales: Sequence[float],
    model: Any,
) -> tuple[dict[str, Tensor], int, float]:
    """One product for the matrices of a tensor; its rank and its factor."""
    first = next(n for n, part in enumerate(own) if part)
    scale = scales[first]
    if len(own) == 1:
        factor = own[0].get("lora_A", own[0].get("lora_embedding_A"))
        return dict(own[0]), 0 if factor is None else len(factor), scale
    present = [part for part in own if part]
    shared = all(torch.equal(part["lora_A"], present[0]["lora_A"]) for part in present)
    shared = shared and all(s == scale for s, part in zip(scales, own, strict=True) if part)
    total = len(present[0]["lora_A"]) if shared else sum(len(part["lora_A"]) for part in present)
    rows, done = [], 0
    for shape, part, own_scale in zip(item.shapes, own, scales, strict=True):
        block = present[0]["lora_B"].new_zeros(shape[0], total)
        if part:
            rank = len(part["lora_A"])
            factor = part["lora_B"] if own_scale == scale else part["lora_B"] * (own_scale / scale)
            block[:, done : done + rank] = factor
            done += 0 if shared else rank
        rows.append(block)
    factor_a = present[0]["lora_A"] if shared else torch.cat([p["lora_A"] for p in present])
    joined = {"lora_A": factor_a, "lora_B": _join_rows(item, rows)}
    if any("magnitude" in part for part in present):
        lengths = [
            part["magnitude"] if part else torch.linalg.norm(_base_weight(model, name), dim=1)
            for part, name in zip(own, names, strict=True)
        ]
        joined["magnitude"] = _join_rows(item, [x[:, None] for x in lengths])[:, 0]
    return joined, total, scale


def _join_factors(item: TensorMapping, own: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Factors of IA3 for the matrices of a tensor."""
    present = [part["ia3_l"] for part in own if part]
    if len(own) == 1:
        return {"ia3_l": present[0]}
    if any(len(part) == 1 for part in present):  # of the inputs
        if len(present) < len(own) or any(not torch.equal(x, present[0]) for x in present):
            raise UserError(f"{item.hf_name}: its matrices have different factors of their inputs")
        return {"ia3_l": present[0]}
    rows = [
        part["ia3_l"] if part else present[0].new_ones(shape[0], 1)
        for part, shape in zip(own, item.shapes, strict=True)
    ]
    return {"ia3_l": _join_rows(item, rows)}


def _join_rows(item: TensorMapping, rows: Sequence[Tensor]) -> Tensor:
    """Rows of matrices in the order of the tensor: [O, R] each -> [sum of O, R]."""
    joined = item.layout.join(list(rows))
    return joined.t() if _is_transposed(item) else joined


def _is_transposed(item: TensorMapping) -> bool:
    return item.layout in (TRANSPOSED, STACKED_TRANSPOSED)


def _base_weight(model: Any, name: str) -> Tensor:
    module = model.get_submodule(name)
    weight = module.base_weight() if isinstance(module, AdaptedMatrix) else module.weight
    detached: Tensor = weight.detach()
    return detached
