"""The destination `onnx`: graphs for onnxruntime, and what a runner needs beside them.

model.onnx                    encoders: classifier, regressor, embedder, masked LM
decoder.onnx                  prompts and steps, with keys and values in and out
encoder.onnx, decoder.onnx    encoder-decoder models
export.json                   how inputs are encoded and outputs are read
tokenizer.json                the tokenizer
run.py, decoding.py,          a runner that needs onnxruntime, numpy and tokenizers only,
encoding.py, requirements.txt and their versions
"""

from __future__ import annotations

from pathlib import Path

from miniformer.checkpoint.directory import atomic_model_directory, require_empty
from miniformer.exporters.destination import destination
from miniformer.exporters.onnx.bundle import write_bundle
from miniformer.exporters.onnx.graphs import write_graphs
from miniformer.exporters.source import read_source


@destination(
    "encoders, classifiers, regressors, masked LMs, decoder-only and encoder-decoder models",
    runtime="onnxruntime",
    extra="onnx",
    packages=("onnx", "onnxscript", "onnxruntime"),
)
def export_onnx(
    directory: Path,
    out: str,
    *,
    weights: str = "float32",
    data: str | None = None,
    verify: bool = True,
) -> str:
    """Writes a model as ONNX graphs."""
    require_empty(Path(out))
    source = read_source(directory)
    with atomic_model_directory(Path(out)) as folder:
        files = write_graphs(source, folder)
        write_bundle(source, folder, files, weights)
    return f"written to {out}"
