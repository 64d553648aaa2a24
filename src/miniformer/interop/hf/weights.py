"""Names of tensors, ours and theirs, and how theirs are laid out.

A rule names modules; what follows, `.weight` or `.bias`, is the same on both sides. `{}` stands for
the number of a layer. Where theirs is several of ours in one tensor, or turned, a layout says how.

Letters: D inputs of a map, O its outputs, H heads, E head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from miniformer.config import UserError

Shapes = Sequence[torch.Size]


class Layout:
    """One tensor of theirs is one of ours, as it is. Others override both ways."""

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        """Ours to theirs."""
        return ours[0]

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        """Theirs to ours, whose shapes are given."""
        return [theirs]


class Transposed(Layout):
    """Weights [D, O], as GPT-2's Conv1D has them."""

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return ours[0].t()

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return [theirs.t()]


class Stacked(Layout):
    """Ours one above the other: [O1 + O2 + ..., D]."""

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(ours))

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        sizes = [shape[0] for shape in shapes]
        return [part.view(shape) for part, shape in zip(_cut(theirs, sizes), shapes, strict=True)]


class StackedTransposed(Stacked):
    """The same side by side, [D, O1 + O2 + ...]; biases are one row in any case."""

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return super().join(ours).t()

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return super().split(theirs.t(), shapes)


@dataclasses.dataclass(frozen=True)
class ByHead(Layout):
    """Query, key and value of the first head, then of the second: [H * 3 * E, D] (GPT-NeoX).

    Args:
        heads: number of heads H.
    """

    heads: int = 1

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        parts = [each.unflatten(0, (self.heads, -1)) for each in ours]  # [H, E, D]
        return torch.stack(parts, 1).flatten(0, 2)

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        parts = theirs.unflatten(0, (self.heads, len(shapes), -1)).unbind(1)  # each [H, E, D]
        return [part.flatten(0, 1) for part in parts]


@dataclasses.dataclass(frozen=True)
class AfterRows(Layout):
    """Rows that no real token uses come first (RoBERTa, BART).

    Args:
        rows: how many.
    """

    rows: int = 2

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return torch.cat((ours[0].new_zeros(self.rows, *ours[0].shape[1:]), ours[0]))

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return [theirs[self.rows :]]


class OneRow(Layout):
    """[1, V], a row of its own."""

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return ours[0][None]

    def split(self, theirs: Tensor, shapes: Shapes) -> list[Tensor]:
        return [theirs[0]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which module of theirs is which of ours.

    Args:
        ours: our module, or several.
        theirs: their module.
        layout: how its tensors are laid out.
    """

    ours: tuple[str, ...]
    theirs: str
    layout: Layout = Layout()


def rules(names: Mapping[str | tuple[str, ...], str | tuple[str, Layout]]) -> tuple[Rule, ...]:
    """Rules from a table: our module or modules -> theirs, maybe with its layout."""
    made = []
    for ours, right in names.items():
        theirs, layout = (right, Layout()) if isinstance(right, str) else right
        made.append(Rule((ours,) if isinstance(ours, str) else ours, theirs, layout))
    return tuple(made)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A tensor of theirs and what it is of ours."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout
    shapes: tuple[torch.Size, ...]  # of ours

    def shape(self) -> torch.Size:
        """Its shape in their file."""
        empty = [torch.empty(shape, device="meta") for shape in self.shapes]
        return self.layout.join(empty).shape


def pieces(table: Sequence[Rule], weights: Mapping[str, torch.Size]) -> list[Piece]:
    """Their tensors for all of ours, in the order of ours.

    Args:
        table: the rules.
        weights: our names and shapes.

    Raises:
        UserError: no rule knows a weight, or only half of what belongs together is there.
    """
    known = {name: rule for rule in table for name in rule.ours}
    found: dict[str, Piece] = {}
    for name in weights:
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
        ours = tuple(each.replace("{}", layer) + suffix for each in rule.ours)
        theirs = rule.theirs.replace("{}", layer) + suffix
        missing = [each for each in ours if each not in weights]
        if missing:
            raise UserError(f"{theirs} holds {missing[0]} too, which the model does not have")
        layout = rule.layout
        if ending == "bias" and isinstance(layout, Transposed | StackedTransposed):
            layout = Stacked() if isinstance(layout, StackedTransposed) else Layout()
        found.setdefault(
            theirs, Piece(theirs, ours, layout, tuple(weights[each] for each in ours))
        )
    return list(found.values())


def _cut(tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    parts, start = [], 0
    for size in sizes:
        parts.append(tensor[start : start + size])
        start += size
    return parts
