"""`miniformer.export`: a model as files of another program."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.checkpoint.directory import require_empty
from miniformer.checkpoint.early_exit import FILE_NAME
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model
from miniformer.registry.options import check_options


def export(model: Any, out: str | Path, *, to: str = "hf", **options: Any) -> str:
    """Writes a model for another program, and compares what it wrote with the model.

    Args:
        model: a `Pipeline`, a model, a model directory, or the folder of a run.
        out: the directory or file to write; it must not exist, or be an empty directory.
        to: the destination, a name of the registry kind `exporter`.
        **options: options of the destination, such as `weights="int8"`.

    Returns:
        A text for the user, with the largest difference if the destination compares.

    Raises:
        UserError: the destination or an option is unknown, a package is missing, the model cannot
            go there, or `out` is not empty.
    """
    exporter = registry.get("exporter", to)
    check_options(exporter, to, options, num_args=2, label="to")
    require_empty(Path(out))
    if isinstance(model, str | Path):
        directory = Path(resolve_model(str(model)))
        return _call(exporter, directory, out, options) + _note((directory / FILE_NAME).exists())
    save = model.save if isinstance(model, Pipeline) else getattr(model, "save_pretrained", None)
    if save is None:
        raise UserError(
            f"export takes a Pipeline, a model or a model directory, not a {type(model).__name__}"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        save(folder)
        network = model.model if isinstance(model, Pipeline) else model
        has_exits = getattr(network, "exit_policy", None) is not None
        return _call(exporter, folder, out, options) + _note(has_exits)


def _note(has_exits: bool) -> str:
    """A line for the user about a model with early exits."""
    if not has_exits:
        return ""
    return f"\nwithout the early exits of {FILE_NAME}: all layers are computed for each record"


def _call(exporter: Any, directory: Path, out: str | Path, options: dict[str, Any]) -> str:
    return exporter(directory, str(out), **options) or f"written to {out}"
