"""`miniformer import` and `miniformer export`: conversion from and to Hugging Face files."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.config.command_line import command_parser, miniformer_command, resolve_model


def add_import_command(commands: Any) -> None:
    """Adds `import` to the subcommands of a parser."""
    importing = command_parser("Convert a Hugging Face model to a model directory.")
    importing.add_argument("source", type=str, help="directory, or name on the hub: user/name")
    importing.add_argument("out", type=str, help="model directory to write")
    importing.add_argument(
        "--revision", type=str | None, default=None, help="branch, tag or commit"
    )
    importing.add_argument(
        "--max_seq_len",
        type=int | None,
        default=None,
        help="context length; null: that of the model",
    )
    importing.add_argument(
        "--custom_code", type=str, default="refuse",
        help="refuse a model that has custom code, or ignore the code (it is never run)",
    )  # fmt: skip
    commands.add_subcommand(
        "import", importing, help="convert a Hugging Face model to a model directory"
    )


def add_export_command(commands: Any) -> None:
    """Adds `export` to the subcommands of a parser."""
    exporting = command_parser("Convert a model directory to Hugging Face files.")
    exporting.add_argument("directory", type=str, help="model directory, or the folder of a run")
    exporting.add_argument("out", type=str, help="directory to write")
    exporting.add_argument("--to", type=str, default="hf", help="hf: Hugging Face files")
    exporting.add_argument(
        "--family", type=str | None, default=None, help="model_type to write, such as llama"
    )
    commands.add_subcommand("export", exporting, help="convert a model for transformers and others")


def run_import(values: dict[str, Any]) -> int:
    """Imports; returns the exit code."""
    if values["custom_code"] not in ("refuse", "ignore"):
        raise UserError(f"custom_code must be refuse or ignore, not {values['custom_code']!r}")
    length = values["max_seq_len"]
    settings = {} if length is None else {"max_seq_len": length}
    from miniformer.interop.hf.api import import_hf

    start_time = time.monotonic()
    result = import_hf(
        values["source"],
        values["out"],
        revision=values["revision"],
        custom_code=values["custom_code"],
        **settings,
    )
    seconds = time.monotonic() - start_time
    config = result.config
    print(
        f"{result.class_name}: {config.n_layers} layers of width {config.d_model}, "
        f"{result.n_bytes / 1e6:,.1f} MB in {seconds:.1f} s"
    )
    for note in result.notes:
        print(note)
    doctor = f"{miniformer_command()} doctor {shlex.quote(values['out'])}"
    print(f"written to {values['out']}; check it: {doctor}")
    return 0


def run_export(values: dict[str, Any]) -> int:
    """Exports; returns the exit code."""
    if values["to"] != "hf":
        raise UserError(f"to must be hf, not {values['to']!r}")
    from miniformer.interop.hf.export import to_hf

    to_hf(Path(resolve_model(values["directory"])), values["out"], family=values["family"])
    print(f"written to {values['out']} for transformers; see its README.md")
    print(f"convert back: {miniformer_command()} import {shlex.quote(values['out'])} DIRECTORY")
    return 0
