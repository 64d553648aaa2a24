"""Writes the programs of a model for one runtime: files, names and tokenizer in a folder.

NAME and a suffix     each program: `model`, or `decoder`, or `encoder` and `decoder`
export.json           names of inputs and outputs in order, and what a runner must know
tokenizer.json        the tokenizer
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch.export import ExportedProgram

from miniformer.checkpoint.directory import atomic_model_directory, require_empty
from miniformer.config import UserError
from miniformer.exporters.compiled.flat import FlatView, export_flat
from miniformer.exporters.onnx.description import describe
from miniformer.exporters.programs import Program, make_programs
from miniformer.exporters.source import read_source
from miniformer.exporters.verify import Run, compare
from miniformer.utils.atomic import write_json


class Format(NamedTuple):
    """Files of a runtime.

    Args:
        name: the destination.
        suffix: end of a file's name.
        write: writes a program: (exported program, program, path).
        load: reads a file with the runtime: (path, program) -> a function of tensors.
        export: makes the exported program.
        limits: largest numbers of rows (`batch`) and tokens (`length`); None: there are none.
        finish: writes further files into the folder.
    """

    name: str
    suffix: str
    write: Callable[[ExportedProgram, Program, Path], None]
    load: Callable[[Path, Program], Run]
    export: Callable[[Program], ExportedProgram] = export_flat
    limits: dict[str, int] | None = None
    finish: Callable[[list[Program], Path], None] = lambda programs, folder: None


def write_programs(
    form: Format, directory: Path, out: Path, *, verify: bool, **comparison: Any
) -> str:
    """Writes the programs of a model directory; returns a text for the user.

    Args:
        form: files of the runtime.
        directory: the model directory.
        out: folder to write, which appears once everything is written and compared.
        verify: load the files with the runtime and compare them with the model.
        **comparison: sizes of the comparison, see `compare`.

    Raises:
        UserError: `out` is not empty or cannot be written, the model has a part that no program
            can compute, or the files do not compute what the model does.
    """
    require_empty(out)
    source = read_source(directory)
    programs = make_programs(source)
    result = "not compared with the model"
    with _quiet(), atomic_model_directory(out) as folder:
        files = {program.name: program.name + form.suffix for program in programs}
        for program in programs:
            _write_program(form, program, folder / files[program.name])
        names = {p.name: {"inputs": p.inputs, "outputs": p.outputs} for p in programs}
        further: dict[str, Any] = {"to": form.name, "names": names, "limits": form.limits}
        further["past"] = _past_sizes(programs)
        write_json(folder / "export.json", describe(source, files, "float32") | further)
        if source.tokenizer is not None:
            source.tokenizer.save(folder / "tokenizer.json")
        form.finish(programs, folder)
        if verify:
            runs = {p.name: form.load(folder / files[p.name], p) for p in programs}
            compared = compare(source, programs, runs, **comparison)
            compared.check()
            result = f"compared with the model: {compared.text()}"
    return f"written to {out}; {result}"


def _write_program(form: Format, program: Program, path: Path) -> None:
    try:
        form.write(form.export(program), program, path)
    except (OSError, UserError):
        raise
    except Exception as error:  # of torch.export or of a compiler, of many types
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(
            f"{path.name}: {form.name} cannot compile this model; a part of one's own must consist "
            f"of operations that it has: {type(error).__name__}: {reason:.300}"
        ) from error


def _past_sizes(programs: list[Program]) -> list[tuple[int, int]]:
    """Heads and width of each tensor of the past, in the order of the inputs."""
    return [
        (example.shape[1], example.shape[3])
        for program in programs
        for name, example in zip(program.inputs, FlatView(program).example_inputs(), strict=True)
        if name.startswith("past_key_values.") and ".encoder." not in name
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the warnings of exporters about their own code from the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
