"""Tensor names of Hugging Face checkpoints and of Miniformer, and the layouts of their tensors.

A rule maps module names; the suffix, `.weight` or `.bias`, is the same on both sides. `{}` stands
for the layer index. A layout converts a checkpoint tensor that is stacked or transposed.

Letters: D input width, O output width, H heads, E head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miniformer.config import UserError

Shapes = Sequence[torch.Size]


class Layout(NamedTuple):
    """Conversion between one checkpoint tensor and one or more model tensors.

    Args:
        join: model tensors -> checkpoint tensor.
        split: checkpoint tensor and shapes of the model tensors -> model tensors.
        bias_layout: layout of a bias, if it differs from that of a weight.
    """

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor, Shapes], list[Tensor]]
    bias_layout: Layout | None = None


def _split_rows(tensor: Tensor, shapes: Shapes) -> list[Tensor]:
    return list(torch.split(tensor, [shape[0] for shape in shapes]))


IDENTITY = Layout(lambda tensors: tensors[0], lambda tensor, _: [tensor])
# Weights [D, O] of GPT-2's Conv1D.
TRANSPOSED = Layout(
    lambda tensors: tensors[0].t(), lambda tensor, _: [tensor.t()], bias_layout=IDENTITY
)
# Concatenated rows, [O1 + O2 + ..., D].
STACKED = Layout(lambda tensors: torch.cat(list(tensors)), _split_rows)
STACKED_TRANSPOSED = Layout(
    lambda tensors: torch.cat(list(tensors)).t(),
    lambda tensor, shapes: _split_rows(tensor.t(), shapes),
    bias_layout=STACKED,
)
# A vector as a matrix of one row, [1, V].
ONE_ROW = Layout(lambda tensors: tensors[0][None], lambda tensor, _: [tensor[0]])


def interleaved_heads(heads: int) -> Layout:
    """Query, key and value interleaved by head: [H * 3 * E, D] (GPT-NeoX)."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        by_head = [x.reshape(heads, -1, *x.shape[1:]) for x in tensors]  # [H, E, D] each
        return torch.stack(by_head, 1).flatten(0, 2)

    def split(tensor: Tensor, shapes: Shapes) -> list[Tensor]:
        by_head = tensor.reshape(heads, len(shapes), -1, *tensor.shape[1:])  # [H, 3, E, D]
        return [x.flatten(0, 1) for x in by_head.unbind(1)]

    return Layout(join, split)


def skip_leading_rows(rows: int) -> Layout:
    """Skips leading rows that only padding uses (RoBERTa, BART); an export writes zeros."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat((tensors[0].new_zeros(rows, *tensors[0].shape[1:]), tensors[0]))

    return Layout(join, lambda tensor, _: [tensor[rows:]])


# Model module or modules -> checkpoint module, or that and a layout.
NameTable = Mapping[str | tuple[str, ...], str | tuple[str, Layout]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Maps a checkpoint module to one or more model modules.

    Args:
        names: model modules.
        hf_name: checkpoint module.
        layout: layout of the checkpoint tensors.
    """

    names: tuple[str, ...]
    hf_name: str
    layout: Layout


def make_rules(names: NameTable, prefix: str = "", hf_prefix: str = "") -> list[Rule]:
    """Rules of a table, with prefixes of both sides."""
    result = []
    for left, right in names.items():
        hf_name, layout = (right, IDENTITY) if isinstance(right, str) else right
        modules = (left,) if isinstance(left, str) else left
        result.append(Rule(tuple(prefix + name for name in modules), hf_prefix + hf_name, layout))
    return result


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """A checkpoint tensor and its model tensors."""

    hf_name: str
    names: tuple[str, ...]
    layout: Layout
    shapes: tuple[torch.Size, ...]  # of the model tensors

    def shape(self) -> torch.Size:
        """Shape of the checkpoint tensor."""
        empty = [torch.empty(shape, device="meta") for shape in self.shapes]
        return self.layout.join(empty).shape


def map_tensors(
    weight_rules: Sequence[Rule], shapes: Mapping[str, torch.Size]
) -> list[TensorMapping]:
    """Maps all model tensors, given by name and shape, to checkpoint tensors, in their order.

    Raises:
        UserError: no rule covers a tensor, or a stacked tensor is incomplete.
    """
    known = {name: rule for rule in weight_rules for name in rule.names}
    mappings: dict[str, TensorMapping] = {}
    for name in shapes:
        number = re.search(r"(?<=layers\.)\d+", name)
        pattern = re.sub(r"(?<=layers\.)\d+", "{}", name)
        module, _, ending = pattern.rpartition(".")
        # A rule for a tensor precedes that of its module: bias and weight may have two modules.
        exact = pattern in known
        rule = known.get(pattern) or known.get(module)
        if rule is None:
            raise UserError(f"no rule for the weight {name}")
        layer = "" if number is None else number[0]
        suffix = "" if exact else f".{ending}"
        names = tuple(target.replace("{}", layer) + suffix for target in rule.names)
        hf_name = rule.hf_name.replace("{}", layer) + suffix
        missing = [target for target in names if target not in shapes]
        if missing:
            raise UserError(f"{hf_name} holds {missing[0]} too, which the model does not have")
        layout = rule.layout
        if ending == "bias" and layout.bias_layout is not None:
            layout = layout.bias_layout
        mapping = TensorMapping(hf_name, names, layout, tuple(map(shapes.__getitem__, names)))
        mappings.setdefault(hf_name, mapping)
    return list(mappings.values())
