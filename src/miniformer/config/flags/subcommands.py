"""Parsers of subcommands, which are components of the kind `command`."""

from __future__ import annotations

from typing import Any

import jsonargparse

from miniformer import registry
from miniformer.config import UserError
from miniformer.config.command_line import command_parser


def make_command_parser(
    name: str, command: Any, commands: Any = None
) -> jsonargparse.ArgumentParser:
    """Parser of a component of the kind `command`: a module or an object.

    It has the functions `add_arguments(parser)` and `run(values)`, which returns the exit code or
    None, and may have

        DESCRIPTION          text at the start of the help; else the first line of its docstring
        FILES_FLAG           see `command_parser`
        ONLY_GIVEN           True: `values` has no defaults
        help_defaults(args)  defaults that the help shows

    Args:
        name: name of the command.
        command: the command.
        commands: subcommands of a parser, to which the parser is added.

    Raises:
        UserError: a function is missing.
    """
    for function in ("add_arguments", "run"):
        if not callable(getattr(command, function, None)):
            raise UserError(f"command {name!r} has no function {function}: {command!r}")
    parser = command_parser(
        getattr(command, "DESCRIPTION", None) or registry.first_doc_line(command),
        files_flag=getattr(command, "FILES_FLAG", None),
    )
    if commands is not None:  # before it has subcommands of its own
        commands.add_subcommand(name, parser, help=registry.summary("command", name))
    command.add_arguments(parser)
    return parser
