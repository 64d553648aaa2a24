"""`miniformer import` and `miniformer export`: Hugging Face's files, in and out."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.config.command_line import command_parser, miniformer_command, python_command


def add_hf_commands(commands: Any) -> None:
    """Adds `import` and `export` to the subcommands of a parser."""
    importing = command_parser("Make a model directory of a Hugging Face model.")
    importing.add_argument("source", type=str, help="a directory, or a name on the hub: user/name")
    importing.add_argument("out", type=str, help="model directory to make")
    importing.add_argument(
        "--revision", type=str | None, default=None, help="branch, tag or commit"
    )
    importing.add_argument(
        "--max_seq_len", type=int | None, default=None, help="tokens at most; default: the files'"
    )
    importing.add_argument(
        "--custom_code", type=str, default="refuse",
        help="refuse a model that names code of its own, or ignore the code (it is never run)",
    )  # fmt: skip
    commands.add_subcommand("import", importing, help="bring a Hugging Face model here")
    exporting = command_parser("Write a model directory as files that others load.")
    exporting.add_argument("directory", type=str, help="model directory")
    exporting.add_argument("out", type=str, help="directory to make")
    exporting.add_argument("--to", type=str, default="hf", help="hf: Hugging Face's files")
    exporting.add_argument(
        "--family", type=str | None, default=None, help="model_type to write, such as llama"
    )
    commands.add_subcommand("export", exporting, help="write a model for transformers and others")


def run_import(values: dict[str, Any]) -> int:
    """Imports; returns the exit code."""
    if values["custom_code"] not in ("refuse", "ignore"):
        raise UserError(f"custom_code must be refuse or ignore, not {values['custom_code']!r}")
    length = values["max_seq_len"]
    settings = {} if length is None else {"max_seq_len": length}
    from miniformer.interop.hf.api import import_hf

    began = time.monotonic()
    made = import_hf(
        values["source"],
        values["out"],
        revision=values["revision"],
        custom_code=values["custom_code"],
        **settings,
    )
    took = time.monotonic() - began
    config = made.config
    print(
        f"{made.class_name}: {config.n_layers} layers of width {config.d_model}, "
        f"{made.n_bytes / 1e6:,.1f} MB in {took:.1f} s"
    )
    for note in made.notes:
        print(note)
    look = f"{python_command()} -m miniformer.doctor {shlex.quote(values['out'])}"
    print(f"it is in {values['out']}; look at it: {look}")
    return 0


def run_export(values: dict[str, Any]) -> int:
    """Exports; returns the exit code."""
    if values["to"] != "hf":
        raise UserError(f"to must be hf, not {values['to']!r}")
    from miniformer.interop.hf.export import to_hf

    to_hf(Path(values["directory"]), values["out"], family=values["family"])
    print(f"transformers loads it from {values['out']}, see its README.md")
    print(f"and back: {miniformer_command()} import {shlex.quote(values['out'])} DIRECTORY")
    return 0
