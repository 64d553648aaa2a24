"""Programs whose inputs and outputs are flat: one tensor for each name.

A flat program needs no class of this package when it is loaded, and a program in another language
can call it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from miniformer.exporters.programs import Program


class FlatView(nn.Module):
    """The view of a program as a function of tensors, in the order of the names.

    Args:
        program: the program.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.view = program.view
        self._structure = pytree.tree_structure(program.view.example_inputs())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Computes the outputs, in the order of the names."""
        outputs = self.view(*pytree.tree_unflatten(tensors, self._structure))
        return tuple(pytree.tree_leaves(outputs))

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Makes inputs for `torch.export`."""
        return tuple(pytree.tree_leaves(self.view.example_inputs()))

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """The dynamic dimensions of each input, by their index."""
        return tuple(_shapes(self.view.dynamic_shapes()))


def export_flat(program: Program) -> ExportedProgram:
    """Exports a program; it takes any sizes, from 1."""
    flat = FlatView(program)
    with torch.no_grad():
        return torch.export.export(
            flat, flat.example_inputs(), dynamic_shapes=(flat.dynamic_shapes(),), strict=False
        )


def _shapes(shapes: Any) -> list[Any]:
    """The dictionaries of nested tuples, in order."""
    if isinstance(shapes, dict):
        return [shapes]
    return [shape for part in shapes for shape in _shapes(part)]
