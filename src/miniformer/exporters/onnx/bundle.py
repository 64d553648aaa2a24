"""Files that accompany the graphs: tokenizer, `export.json`, the runner and its requirements."""

from __future__ import annotations

import importlib.metadata
from importlib.resources import files as package_files
from pathlib import Path

from miniformer.exporters.onnx.description import describe
from miniformer.exporters.source import Source
from miniformer.utils.atomic import write_json, write_text

RUNNER_FILES = ("run.py", "decoding.py", "encoding.py")
_RUNNER_PACKAGE = "miniformer.exporters.onnx.runner"
_REQUIREMENTS = ("onnxruntime", "numpy", "tokenizers")


def write_bundle(
    source: Source,
    folder: Path,
    files: dict[str, str],
    weights: str,
    losses: dict[str, float] | None = None,
) -> None:
    """Writes all files but the graphs.

    Args:
        source: the model.
        folder: the exported folder.
        files: graphs by part, see `describe`.
        weights: type of the stored weights.
        losses: loss on records by type of the weights; None: not computed.
    """
    if source.tokenizer is not None:
        source.tokenizer.save(folder / "tokenizer.json")
    description = describe(source, files, weights) | {"losses": losses or None}
    write_json(folder / "export.json", description)
    for name in RUNNER_FILES:
        code = (package_files(_RUNNER_PACKAGE) / name).read_text(encoding="utf-8")
        write_text(folder / name, code.replace(f"from {_RUNNER_PACKAGE}.", "from "))
    pins = (f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS)
    write_text(folder / "requirements.txt", "".join(f"{pin}\n" for pin in pins))
