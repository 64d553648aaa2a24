"""`miniformer import`: conversion of a Hugging Face model or a GGUF file to a model directory."""

from __future__ import annotations

import shlex
import time
from typing import Any

from miniformer.config import UserError
from miniformer.config.command_line import miniformer_command

DESCRIPTION = "Convert a Hugging Face model or a GGUF file to a model directory."


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "source", type=str, help="directory, name on the hub (user/name), or GGUF file"
    )
    parser.add_argument("out", type=str, help="model directory to write")
    parser.add_argument("--revision", type=str | None, default=None, help="branch, tag or commit")
    parser.add_argument(
        "--max_seq_len",
        type=int | None,
        default=None,
        help="context length; null: that of the model",
    )
    parser.add_argument(
        "--custom_code", type=str, default="refuse",
        help="refuse a model that has custom code, or ignore the code (it is never run)",
    )  # fmt: skip


def run(values: dict[str, Any]) -> int:
    """Imports; returns the exit code."""
    if values["custom_code"] not in ("refuse", "ignore"):
        raise UserError(f"custom_code must be refuse or ignore, not {values['custom_code']!r}")
    length = values["max_seq_len"]
    if values["source"].endswith(".gguf"):
        return _import_gguf(values)
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
    _report(result.class_name, result, time.monotonic() - start_time, values["out"])
    return 0


def _import_gguf(values: dict[str, Any]) -> int:
    from miniformer.interop.gguf.load import import_gguf

    if values["revision"] is not None:
        raise UserError("revision is an option of names on the hub, not of a GGUF file")
    start_time = time.monotonic()
    result = import_gguf(values["source"], values["out"], max_seq_len=values["max_seq_len"])
    _report(result.architecture, result, time.monotonic() - start_time, values["out"])
    return 0


def _report(name: str, result: Any, seconds: float, out: str) -> None:
    config = result.config
    print(
        f"{name}: {config.n_layers} layers of width {config.d_model}, "
        f"{result.n_bytes / 1e6:,.1f} MB in {seconds:.1f} s"
    )
    for note in result.notes:
        print(note)
    doctor = f"{miniformer_command()} doctor {shlex.quote(out)}"
    print(f"written to {out}; check it: {doctor}")
