"""The `miniformer` command: its subcommands are the components of the kind `command`.

A subcommand is imported only when it runs, or when its own help is asked for.
"""

from __future__ import annotations

import sys
from typing import Any

from miniformer import __version__, registry
from miniformer.config.command_line import (
    command_context,
    command_parser,
    parse_flags,
)
from miniformer.config.flags.problems import find_subparser
from miniformer.config.flags.subcommands import make_command_parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code. Without arguments it prints the help."""
    args = sys.argv[1:] if argv is None else argv
    with command_context() as context:
        name = args[0] if args and args[0] in registry.names("command") else None
        command = None if name is None else registry.get("command", name)
        parser = make_parser(name, command)
        if len(args) == 0 or (len(args) == 1 and _has_subcommands(parser, args)):
            args = [*args, "--help"]
        help_defaults = getattr(command, "help_defaults", None)
        if {"-h", "--help"} & {*args} and help_defaults is not None:
            find_subparser(parser, args)[0].set_defaults(help_defaults(args))
        defaults = not getattr(command, "ONLY_GIVEN", False)
        values = parse_flags(parser, args, defaults=defaults)
        context.code = _run(command, values)
    return context.code


def make_parser(name: str | None, command: Any) -> Any:
    """Parser with one subcommand, or with all names and help lines if `name` is None."""
    parser = command_parser("Miniformer: train and use Transformers.", prog="miniformer")
    parser.add_argument("--version", action="version", version=f"miniformer {__version__}")
    commands = parser.add_subcommands(required=True, dest="command", metavar="COMMAND")
    if name is not None:
        make_command_parser(name, command, commands)
        return parser
    for item in registry.names("command"):
        commands.add_subcommand(item, command_parser(""), help=registry.summary("command", item))
    return parser


def _has_subcommands(parser: Any, args: list[str]) -> bool:
    child, first = find_subparser(parser, args)
    return first > 0 and any(hasattr(action, "_name_parser_map") for action in child._actions)


def _run(command: Any, values: dict[str, Any]) -> int:
    command_values = values[values["command"]]
    command_values.pop("config", None)
    code = command.run(command_values)
    return 0 if code is None else int(code)


if __name__ == "__main__":
    sys.exit(main())
