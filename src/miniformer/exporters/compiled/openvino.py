"""Graphs of OpenVINO: `.xml`, with weights in `.bin`."""

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

# Without the hint, processors with bfloat16 compute in it.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


def _write(exported: ExportedProgram, program: Program, path: Path) -> None:
    import openvino

    graph: Any = openvino.convert_model(exported)
    for ports, names in ((graph.inputs, program.inputs), (graph.outputs, program.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.set_names({name})
    openvino.save_model(graph, path, compress_to_fp16=False)


def _load(path: Path, program: Program) -> Run:
    import openvino

    compiled: Any = openvino.compile_model(path, "CPU", SETTINGS)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        named = zip(program.inputs, inputs, strict=True)
        results = compiled({name: tensor.numpy() for name, tensor in named})
        return [torch.from_numpy(results[name].copy()) for name in program.outputs]

    return run


FORMAT = Format("openvino", ".xml", _write, _load)
