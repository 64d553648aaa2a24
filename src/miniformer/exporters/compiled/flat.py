"""Programs whose inputs and outputs are flat: one tensor for each name.

A flat program needs no class of this package when it is loaded, and a program in another language
can call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
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


def export_flat(program: Program, limits: Mapping[str, int] | None = None) -> ExportedProgram:
    """Exports a program; it takes any sizes, from 1.

    Args:
        program: the program.
        limits: largest size by name of a dimension, for runtimes that allocate memory before a
            call; a dimension with the limit 1 is fixed.
    """
    flat = FlatView(program)
    inputs, shapes = flat.example_inputs(), flat.dynamic_shapes()
    if limits is not None:
        inputs, shapes = _limit(inputs, shapes, limits)
    with torch.no_grad():
        return torch.export.export(flat, inputs, dynamic_shapes=(shapes,), strict=False)


def _limit(
    inputs: tuple[Tensor, ...], shapes: tuple[Any, ...], limits: Mapping[str, int]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Inputs and dimensions within limits."""
    dimensions: dict[str, Any] = {}
    limited_inputs, limited_shapes = [], []
    for value, shape in zip(inputs, shapes, strict=True):
        limited = {}
        for axis, dimension in shape.items():
            name = dimension.__name__
            if limits.get(name) == 1:
                value = value.narrow(axis, 0, 1).clone()
                continue
            if name not in dimensions:
                end = limits.get(name)  # None: a sum of limited dimensions
                dimensions[name] = Dim(name, min=dimension.min, max=end) if end else dimension
            limited[axis] = dimensions[name]
        limited_inputs.append(value)
        limited_shapes.append(limited)
    return tuple(limited_inputs), tuple(limited_shapes)


def _shapes(shapes: Any) -> list[Any]:
    """The dictionaries of nested tuples, in order."""
    if isinstance(shapes, dict):
        return [shapes]
    return [shape for part in shapes for shape in _shapes(part)]
