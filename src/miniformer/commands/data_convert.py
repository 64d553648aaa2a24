"""`miniformer data convert`: conversations of other layouts as messages."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.config.command_line import command_parser, miniformer_command

_LAYOUTS = ("sharegpt", "alpaca")


def add_parser(subcommands: Any) -> None:
    """Adds the subcommand."""
    parser = command_parser(
        'Write the conversations of a file as JSON lines of {"messages": [...]}, for training.'
    )
    parser.add_argument("file", type=str, help="a .json or .jsonl file, or another data format")
    parser.add_argument("out", type=str, help=".jsonl file to write")
    parser.add_argument("--from", type=str, required=True, help=" or ".join(_LAYOUTS))
    parser.add_argument(
        "--invalid", type=str, default="refuse",
        help="refuse a file with an invalid record, or drop such records and count them",
    )  # fmt: skip
    subcommands.add_subcommand("convert", parser, help="conversations from sharegpt or alpaca")


def run(options: dict[str, Any]) -> int:
    """Converts; returns the exit code."""
    layout, invalid = options["from"], options["invalid"]
    if layout not in _LAYOUTS:
        raise UserError(f"from must be {' or '.join(_LAYOUTS)}, not {layout!r}")
    if invalid not in ("refuse", "drop"):
        raise UserError(f"invalid must be refuse or drop, not {invalid!r}")
    from miniformer.data.conversations.convert import convert_file

    out = Path(options["out"])
    written, dropped = convert_file(options["file"], out, layout, drop_invalid=invalid == "drop")
    print(f"{written:,} conversations written to {out}; {dropped:,} invalid ones left out")
    print(f"check them: {miniformer_command()} data check {shlex.quote(str(out))}")
    return 0
