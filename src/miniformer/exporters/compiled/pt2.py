"""Programs that `torch.export.load` reads without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from miniformer.exporters.compiled.write import Format
from miniformer.exporters.programs import Program
from miniformer.exporters.verify import Run


def _write(exported: ExportedProgram, program: Program, path: Path) -> None:
    torch.export.save(exported, path)


def _load(path: Path, program: Program) -> Run:
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)


FORMAT = Format("pt2", ".pt2", _write, _load)
