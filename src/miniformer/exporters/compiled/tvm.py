"""Libraries of TVM: programs that its compiler (Relax, LLVM) has translated for this processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from miniformer.exporters.compiled.write import Format
from miniformer.exporters.programs import Program
from miniformer.exporters.verify import Run

_ATEN = torch.ops.aten


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    if low is not None:
        x = torch.where(x < low, torch.full_like(x, low), x)
    return x if high is None else torch.where(x > high, torch.full_like(x, high), x)


def _any(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    is_any: Tensor = _ATEN.sum.dim_IntList(x.long(), [dim], keepdim) != 0
    return is_any


def _sum(x: Tensor, dim: list[int], keepdim: bool = False, dtype: Any = None) -> Any:
    is_count = x.dtype == torch.bool
    return _ATEN.sum.dim_IntList(x.long(), dim, keepdim) if is_count else NotImplemented


def _cumsum(x: Tensor, dim: int, dtype: Any = None) -> Any:
    return _ATEN.cumsum.default(x.long(), dim) if x.dtype == torch.bool else NotImplemented


# TVM 0.27 replaces a missing bound of `clamp` by infinity, which is no integer, adds booleans
# without a conversion, and has no `any` of booleans.
_DECOMPOSITIONS = {
    _ATEN.clamp.default: _clamp,
    _ATEN.clamp_min.default: _clamp,
    _ATEN.clamp_max.default: lambda x, high: _clamp(x, None, high),
    _ATEN.any.dim: _any,
    _ATEN.sum.dim_IntList: _sum,
    _ATEN.cumsum.default: _cumsum,
}


def _write(exported: ExportedProgram, program: Program, path: Path) -> None:
    import tvm
    from tvm.relax.frontend.torch import from_exported_program

    module: Any = from_exported_program(decompose(exported), keep_params_as_input=False)
    tvm.compile(module, "llvm").export_library(str(path))


def decompose(exported: ExportedProgram) -> ExportedProgram:
    """The program in operations that TVM computes."""
    return exported.run_decompositions(dict(_DECOMPOSITIONS))  # type: ignore[no-any-return]


def _load(path: Path, program: Program) -> Run:
    import tvm

    library: Any = tvm.runtime.load_module(str(path))
    machine = tvm.relax.VirtualMachine(library, tvm.cpu())

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = [tvm.runtime.tensor(value.contiguous().numpy()) for value in inputs]
        return [torch.from_numpy(value.numpy()) for value in machine["main"](*arrays)]

    return run


FORMAT = Format("tvm", ".so", _write, _load)
