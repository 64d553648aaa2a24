"""`miniformer export`: conversion of a model directory to files of other tools."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.config.command_line import miniformer_command, resolve_model
from miniformer.registry.options import check_options

DESCRIPTION = "Convert a model directory to files of other tools, such as Hugging Face's."


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("out", type=str, help="directory to write")
    known = ", ".join(registry.names("exporter"))
    parser.add_argument("--to", type=str, default="hf", help=f"format: {known}")
    parser.add_argument(
        "--family", type=str | None, default=None, help="for hf: model_type to write, such as llama"
    )
    parser.add_argument(
        "--options", type=dict, default={}, help='options of the format, such as {"bits": 8}'
    )


def run(values: dict[str, Any]) -> int:
    """Exports; returns the exit code."""
    options = dict(values["options"])
    if values["family"] is not None:
        options["family"] = values["family"]
    exporter = registry.get("exporter", values["to"])
    check_options(exporter, values["to"], options, num_args=2, label="to")
    text = exporter(Path(resolve_model(values["directory"])), values["out"], **options)
    print(text or f"written to {values['out']}")
    return 0


def export_hf(directory: Path, out: str, *, family: str | None = None) -> str:
    """Writes a model for Hugging Face's transformers."""
    from miniformer.interop.hf.export import to_hf  # imports take seconds

    to_hf(directory, out, family=family)
    return (
        f"written to {out} for transformers; see its README.md\n"
        f"convert back: {miniformer_command()} import {shlex.quote(out)} DIRECTORY"
    )
