"""The graphs of a model: torch.export programs as ONNX files.

Inputs have the names that optimum gives them: `input_ids`, `attention_mask`,
`past_key_values.0.key`, `encoder_attention_mask`; outputs `logits`, `present.0.key`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from miniformer.config import UserError
from miniformer.exporters.onnx.attention import translations
from miniformer.exporters.onnx.initializers import save_model, share_tied_head
from miniformer.exporters.programs import Program

OPSET = 20


def write_graphs(programs: Sequence[Program], folder: Path) -> dict[str, str]:
    """Writes the graphs of a model's programs; returns their file names by part.

    Raises:
        UserError: the model has a part that no graph can compute.
    """
    files = {}
    for program in programs:
        files[program.name] = f"{program.name}.onnx"
        write_graph(program, folder / files[program.name])
    return files


def write_graph(program: Program, path: Path) -> None:
    """Writes the graph of a program."""
    with quiet(), torch.no_grad():
        try:
            exported = torch.onnx.export(
                program.view.export(), dynamo=True, opset_version=OPSET,
                input_names=program.inputs, output_names=program.outputs,
                custom_translation_table=translations(),
            )  # fmt: skip
        except Exception as error:  # of torch.export or of the conversion, of many types
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{program.name}.onnx: this model cannot become an ONNX graph; a part of one's own "
                f"must consist of operations that torch.onnx has: {type(error).__name__}: {reason}"
            ) from error
        assert exported is not None
    model = exported.model_proto
    share_tied_head(model)
    save_model(model, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the progress messages of `torch.onnx` from the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
