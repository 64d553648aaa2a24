"""Weight matrices of a model: the linear maps that optimizers, kernels and plug-ins work on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from miniformer.model.ops.linear import effective_weight

_RESIDUAL_PROJECTIONS = ("o_proj", "down_proj")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?=\.)")


@dataclasses.dataclass(frozen=True)
class WeightMatrix:
    """A linear map of a model.

    Args:
        name: such as `layers.0.attention.q_proj`; a matrix of a stacked parameter has its index at
            the end, such as `layers.0.feed_forward.down_proj.3`.
        module: the module that applies it.
        parameter: the parameter that holds it, [out, in] or [experts, out, in]; None: the module
            stores it in another form (see `effective_weight`).
        parameter_name: name of the parameter in the model; without one, that of the weight.
        index: index in a stacked parameter; None: the parameter is this matrix.
    """

    name: str
    module: nn.Module
    parameter: nn.Parameter | None
    parameter_name: str
    index: int | None = None

    @property
    def weight(self) -> Tensor:
        """The matrix, [out, in]: a view of the parameter, or the effective weight without one."""
        if self.parameter is None:
            return effective_weight(self.module)
        return self.parameter if self.index is None else self.parameter[self.index]

    @property
    def layer(self) -> int | None:
        """Index of the layer in its stack; None: outside of the layers."""
        location = layer_of(self.name)
        return None if location is None else location[1]

    @property
    def writes_to_residual(self) -> bool:
        """True if a residual branch ends with this matrix.

        The promised names `o_proj` and `down_proj` do; another module has an attribute
        `writes_to_residual`.
        """
        path = self.name if self.index is None else self.name.rpartition(".")[0]
        is_promised = path.rpartition(".")[2] in _RESIDUAL_PROJECTIONS
        return is_promised or bool(getattr(self.module, "writes_to_residual", False))


def weight_matrices(model: nn.Module) -> Iterator[WeightMatrix]:
    """Yields all weight matrices of a model once, in the order of `named_modules`.

    They are the weights of linear layers, of an untied head, of modules with a method
    `effective_weight`, and the parameters that a module names in `matrix_names`; a parameter
    [experts, out, in] counts as that many. Embeddings are tables, not matrices, so a tied head has
    none.
    """
    seen: set[int] = set()
    for path, module in named_components(model):
        for matrix in _matrices_of(module, path):
            if matrix.parameter is None:
                yield matrix
            elif id(matrix.parameter) not in seen:
                seen.add(id(matrix.parameter))
                yield from _unstack(matrix)


def named_components(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields `named_modules` without the modules within one that has `effective_weight`.

    These belong to its representation of the weight.
    """
    inner: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module not in inner:
            yield path, module
            if hasattr(module, "effective_weight"):
                inner.update(module.modules())


def _matrices_of(module: Any, path: str) -> Iterator[WeightMatrix]:
    """The matrices of a module itself; a stacked parameter is one."""
    is_linear = isinstance(module, nn.Linear) or hasattr(module, "effective_weight")
    default = ("weight",) if is_linear and not isinstance(module, nn.Embedding) else ()
    for name in getattr(module, "matrix_names", default):
        parameter = module._parameters.get(name)
        if parameter is not None or is_linear:  # otherwise the parameter is optional
            matrix_name = path if name == "weight" else _join(path, name)
            yield WeightMatrix(matrix_name, module, parameter, _join(path, name))


def _unstack(matrix: WeightMatrix) -> Iterator[WeightMatrix]:
    assert matrix.parameter is not None
    if matrix.parameter.dim() == 2:
        yield matrix
        return
    for index in range(len(matrix.parameter)):
        yield dataclasses.replace(matrix, name=f"{matrix.name}.{index}", index=index)


def layer_of(name: str) -> tuple[str, int] | None:
    """Stack and layer index of a name; None: it is in no layer.

    `encoder.layers.0.attention` is in (`encoder`, 0), `layers.0.attention` in (``, 0).
    """
    match = _LAYER.search(f"{name}.")
    return None if match is None else (name[: match.start()], int(match[1]))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
