"""`miniformer adapter`: list, merge and mix adapters of a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniformer.config.command_line import command_parser, resolve_model

DESCRIPTION = "List, merge and mix adapters; see docs/finetuning.md."


def add_arguments(parser: Any) -> None:
    """Adds the subcommands."""
    commands = parser.add_subcommands(required=True, dest="action", metavar="ACTION")
    merge = command_parser("Write a plain model directory: a base with an adapter in its weights.")
    merge.add_argument("base", type=str, help="model directory of the base")
    merge.add_argument("adapter", type=str, help="adapter directory")
    merge.add_argument("out", type=str, help="directory to write")
    commands.add_subcommand("merge", merge, help="write a plain model with an adapter")
    listing = command_parser("Show adapter directories.")
    listing.add_argument("adapters", type=str, nargs="+", help="adapter directories")
    commands.add_subcommand("list", listing, help="show method, size and base of adapters")
    mix = command_parser("Write an adapter whose change is a weighted sum of changes.")
    mix.add_argument("out", type=str, help="adapter directory to write")
    mix.add_argument("adapters", type=str, nargs="+", help="adapter directories of one base")
    mix.add_argument("--weights", type=list[float], help="weight of each; null: equal, sum 1")
    commands.add_subcommand("mix", mix, help="write a weighted sum of adapters of LoRA")


def run(values: dict[str, Any]) -> int:
    """Runs a subcommand; returns the exit code."""
    action = values["action"]
    options = values[action]
    if action == "list":
        from miniformer.adapters.commands.listing import list_adapters

        print(list_adapters([Path(path) for path in options["adapters"]]))
    elif action == "mix":
        from miniformer.adapters.commands.mix import mix_adapters

        paths = [Path(path) for path in options["adapters"]]
        mix_adapters(paths, Path(options["out"]), options["weights"])
        print(f"adapter: {options['out']}")
    else:
        from miniformer.adapters.commands.listing import merge_directory

        base = Path(resolve_model(options["base"]))
        merge_directory(base, Path(options["adapter"]), Path(options["out"]))
        print(f"model: {options['out']}")
    return 0
