"""The graphs of a model: torch.export programs as ONNX files.

Inputs have the names that optimum gives them: `input_ids`, `attention_mask`,
`past_key_values.0.key`, `encoder_attention_mask`; outputs `logits`, `present.0.key`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from miniformer.exporters.source import Source
from miniformer.model.cache.static_view import CachedDecoder

OPSET = 20


def write_graphs(source: Source, folder: Path) -> dict[str, str]:
    """Writes the graphs of a model; returns their file names by part."""
    view = CachedDecoder(source.model)
    layers = range(len(view.kv_heads))
    inputs = ["input_ids", "attention_mask"]
    inputs += [f"past_key_values.{n}.{part}" for part in ("key", "value") for n in layers]
    outputs = ["logits", *(f"present.{n}.{part}" for part in ("key", "value") for n in layers)]
    write_graph(view, folder / "decoder.onnx", inputs, outputs)
    return {"decoder": "decoder.onnx"}


def write_graph(view: Any, path: Path, inputs: list[str], outputs: list[str]) -> None:
    """Writes the graph of a view."""
    with quiet():
        program = torch.onnx.export(
            view.export(), dynamo=True, opset_version=OPSET, input_names=inputs,
            output_names=outputs,
        )  # fmt: skip
        assert program is not None
        program.save(str(path), external_data=False)


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
