"""Compiled programs of AOTInductor, and a C++ program that calls them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch._inductor
from torch.export import ExportedProgram

from miniformer.exporters.compiled.write import Format
from miniformer.exporters.programs import Program
from miniformer.exporters.verify import Run

_EXAMPLES = Path(__file__).with_name("cpp")


def _write(exported: ExportedProgram, program: Program, path: Path) -> None:
    assert exported.example_inputs is not None
    sizes = [
        f"{example.shape[1]}x{example.shape[3]}"
        for name, example in zip(program.inputs, exported.example_inputs[0], strict=True)
        if name.startswith("past_key_values.") and ".encoder." not in name
    ]
    # The C++ program reads the heads of keys and values and their widths from the package.
    options: dict[str, Any] = {"aot_inductor.metadata": {"past": " ".join(sizes)}}
    torch._inductor.aoti_compile_and_package(
        exported, package_path=str(path), inductor_configs=options
    )


def _load(path: Path, program: Program) -> Run:
    package = torch._inductor.aoti_load_package(str(path))
    return lambda inputs: package(*inputs)


def _finish(programs: list[Program], folder: Path) -> None:
    """Writes the example, for models whose inputs are token ids and their mask."""
    first = programs[0]
    if first.name == "decoder" or len(programs) > 1:
        name = "decode"
    elif first.inputs == ["input_ids", "attention_mask"]:
        name = "run"
    else:
        return
    shutil.copyfile(_EXAMPLES / f"{name}.cpp", folder / "main.cpp")
    for file in ("CMakeLists.txt", "README.md"):
        shutil.copyfile(_EXAMPLES / file, folder / file)


FORMAT = Format("aoti", ".pt2", _write, _load, finish=_finish)
