"""Names of tensors, ours and theirs, and how theirs are laid out.

A rule names modules; what follows, `.weight` or `.bias`, is the same on both sides. `{}` stands for
the number of a layer. Where theirs is several of ours in one tensor, or turned, a layout says how.

Letters: D inputs of a map, O its outputs, H heads, E head width, V vocabulary.
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
    """How one tensor of theirs is made of ours, and taken apart.

    Args:
        join: ours -> theirs.
        split: theirs, and the shapes of ours -> ours.
        of_bias: the layout of a bias, where it is another than that of a weight.
    """

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor, Shapes], list[Tensor]]
    bias_layout: Layout | None = None


def _split_rows(tensor: Tensor, shapes: Shapes) -> list[Tensor]:
    return list(torch.split(tensor, [shape[0] for shape in shapes]))


# One is the other.
IDENTITY = Layout(lambda ours: ours[0], lambda theirs, _: [theirs])
# Weights [D, O], as GPT-2's Conv1D has them.
TRANSPOSED = Layout(lambda ours: ours[0].t(), lambda theirs, _: [theirs.t()], bias_layout=IDENTITY)
# Ours one above the other, [O1 + O2 + ..., D].
STACKED = Layout(lambda ours: torch.cat(list(ours)), _split_rows)
# Both at once.
STACKED_TRANSPOSED = Layout(
    lambda ours: torch.cat(list(ours)).t(),
    lambda theirs, shapes: _split_rows(theirs.t(), shapes),
    bias_layout=STACKED,
)
# [1, V], a row of its own.
ONE_ROW = Layout(lambda ours: ours[0][None], lambda theirs, _: [theirs[0]])


def interleaved_heads(heads: int) -> Layout:
    """Query, key and value of the first head, then of the second: [H * 3 * E, D] (GPT-NeoX)."""

    def join(ours: Sequence[Tensor]) -> Tensor:
        parts = [each.reshape(heads, -1, *each.shape[1:]) for each in ours]  # each [H, E, D]
        return torch.stack(parts, 1).flatten(0, 2)

    def split(theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        parts = theirs.reshape(heads, len(shapes), -1, *theirs.shape[1:])  # [H, 3, E, D]
        return [part.flatten(0, 1) for part in parts.unbind(1)]

    return Layout(join, split)


def skip_leading_rows(rows: int) -> Layout:
    """Rows that no real token uses come first (RoBERTa, BART); they are lost, and zeros again."""

    def join(ours: Sequence[Tensor]) -> Tensor:
        return torch.cat((ours[0].new_zeros(rows, *ours[0].shape[1:]), ours[0]))

    return Layout(join, lambda theirs, _: [theirs[rows:]])


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which module of theirs is which of ours.

    Args:
        ours: our module, or several.
        theirs: their module.
        layout: how its tensors are laid out.
    """

    names: tuple[str, ...]
    hf_name: str
    layout: Layout


def rules(names: Mapping[str | tuple[str, ...], str | tuple[str, Layout]]) -> tuple[Rule, ...]:
    """Rules from a table: our module or modules -> theirs, maybe with its layout."""
    made = []
    for ours, right in names.items():
        theirs, layout = (right, IDENTITY) if isinstance(right, str) else right
        made.append(Rule((ours,) if isinstance(ours, str) else ours, theirs, layout))
    return tuple(made)


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """A tensor of theirs and what it is of ours."""

    hf_name: str
    names: tuple[str, ...]
    layout: Layout
    shapes: tuple[torch.Size, ...]  # of ours

    def shape(self) -> torch.Size:
        """Its shape in their file."""
        empty = [torch.empty(shape, device="meta") for shape in self.shapes]
        return self.layout.join(empty).shape


def map_tensors(
    weight_rules: Sequence[Rule], shapes: Mapping[str, torch.Size]
) -> list[TensorMapping]:
    """Their tensors for all of ours, in the order of ours.

    Args:
        table: the rules.
        weights: our names and shapes.

    Raises:
        UserError: no rule knows a weight, or only half of what belongs together is there.
    """
    known = {name: rule for rule in weight_rules for name in rule.names}
    found: dict[str, TensorMapping] = {}
    for name in shapes:
        number = re.search(r"(?<=layers\.)\d+", name)
        pattern = re.sub(r"(?<=layers\.)\d+", "{}", name)
        module, _, ending = pattern.rpartition(".")
        # A whole name goes before its module's: a bias may be elsewhere than its weight.
        exact = pattern in known
        rule = known.get(pattern) or known.get(module)
        if rule is None:
            raise UserError(f"there is no place for our weight {name}")
        layer = "" if number is None else number[0]
        suffix = "" if exact else f".{ending}"
        ours = tuple(each.replace("{}", layer) + suffix for each in rule.names)
        theirs = rule.hf_name.replace("{}", layer) + suffix
        missing = [each for each in ours if each not in shapes]
        if missing:
            raise UserError(f"{theirs} holds {missing[0]} too, which the model does not have")
        layout = rule.layout
        if ending == "bias" and layout.bias_layout is not None:
            layout = layout.bias_layout
        found.setdefault(
            theirs, TensorMapping(theirs, ours, layout, tuple(shapes[each] for each in ours))
        )
    return list(found.values())
