"""Programs of ExecuTorch for phones, `.pte`, computed by XNNPACK where it has the operation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from miniformer.config import UserError
from miniformer.exporters.compiled.flat import export_flat
from miniformer.exporters.compiled.write import Format
from miniformer.exporters.programs import Program
from miniformer.exporters.verify import Run


def make_format(max_batch: int, max_length: int) -> Format:
    """Files whose inputs have at most these sizes: memory is planned when they are written.

    Args:
        max_batch: number of rows.
        max_length: number of tokens of an input, and of a past without its masked column.
    """
    limits = {"batch": max_batch, "past": max_length + 1}
    limits |= dict.fromkeys(("length", "source", "words", "kept"), max_length)
    return Format(
        "executorch", ".pte", _write, _load, functools.partial(export_flat, limits=limits),
        {"batch": max_batch, "length": max_length},
    )  # fmt: skip


def _write(exported: ExportedProgram, program: Program, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered: Any = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _load(path: Path, program: Program) -> Run:
    from executorch.runtime import Runtime

    loaded: Any = Runtime.get().load_program(path)
    method = loaded.load_method("forward")

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        try:
            outputs = method.execute(list(inputs))
        except RuntimeError as error:
            raise UserError(
                f"ExecuTorch cannot execute the program that was written ({error}); nothing is "
                "written. Sizes that work are a max_batch of 1"
            ) from None
        # The next call writes into the same memory.
        return [value.clone() for value in outputs]

    return run
