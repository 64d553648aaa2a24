"""The destination `onnx`: graphs for onnxruntime, and what a runner needs in addition.

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
from miniformer.config import UserError
from miniformer.exporters.destination import destination
from miniformer.exporters.onnx.bundle import write_bundle
from miniformer.exporters.onnx.graphs import write_graphs
from miniformer.exporters.onnx.losses import check_data, data_loss
from miniformer.exporters.onnx.session import OnnxModel
from miniformer.exporters.onnx.weights import WEIGHTS, round_graph
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import read_source
from miniformer.exporters.verify import compare
from miniformer.registry import unknown_name_message

LIMIT = 1e-3  # largest difference of float32 outputs, for outputs up to 1


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
    """Writes a model as ONNX graphs.

    Args:
        directory: a model directory.
        out: the directory to write.
        weights: one of `WEIGHTS`; see `miniformer.exporters.onnx.weights`.
        data: file of records; the loss on it, before and after rounding, is kept in export.json.
        verify: compare the graphs with the model in onnxruntime before `out` gets its name.

    Raises:
        UserError: the model has a part that no graph can compute, `out` is not empty, or the graphs
            differ from the model.
    """
    if weights not in WEIGHTS:
        raise UserError(unknown_name_message("weights", weights, list(WEIGHTS)))
    require_empty(Path(out))
    source = read_source(directory)
    if data is not None:
        check_data(source)
    lines = [f"written to {out}"]
    with atomic_model_directory(Path(out)) as folder:
        programs = make_programs(source)
        files = write_graphs(programs, folder)
        losses: dict[str, float] = {}
        for kind in dict.fromkeys(("float32", weights)):
            if kind != "float32":
                for name in files.values():
                    round_graph(folder / name, kind)
            if verify:
                graphs = OnnxModel(source, folder, files)
                result = compare(source, programs, {p.name: graphs.run_of(p) for p in programs})
                if kind == "float32":
                    result.check(LIMIT)
                lines.append(f"{kind}: compared with the model: {result.text()}")
            if data is not None:
                losses[kind] = data_loss(source, OnnxModel(source, folder, files), data)
                lines.append(f"{kind}: loss {losses[kind]:.4f} on {data}")
        if not verify:
            lines.append("not compared with the model")
        write_bundle(source, folder, files, weights, losses)
    return "\n".join(lines)
