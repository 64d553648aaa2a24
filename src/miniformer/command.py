"""What all commands share: flags made from dataclasses, one clear message for a mistake."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from typing import Any

import jsonargparse

from miniformer.config import UserError


def command_parser(description: str) -> jsonargparse.ArgumentParser:
    """A parser whose mistakes are raised, not printed."""
    jsonargparse.set_parsing_settings(docstring_parse_style=_google_style())
    return jsonargparse.ArgumentParser(
        description=description, exit_on_error=False, allow_abbrev=False
    )


def run_command(
    parser: jsonargparse.ArgumentParser,
    arguments: list[str] | None,
    run: Callable[[dict[str, Any]], int],
) -> int:
    """Parses `arguments` (None: the process's own) and runs the command with them.

    Returns:
        The exit code: what `run` returns, 2 after a user's mistake, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            values = parser.parse_args(arguments).as_dict()
        except jsonargparse.ArgumentError as error:
            raise UserError(_plain(str(error), parser, arguments)) from None
        values.pop("config", None)
        return run(values)
    except UserError as error:
        print(f"miniformer: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminiformer: stopped before anything was written", file=sys.stderr)
        return 130


def _google_style() -> Any:
    from docstring_parser import DocstringStyle

    return DocstringStyle.GOOGLE


def _plain(message: str, parser: jsonargparse.ArgumentParser, arguments: list[str]) -> str:
    """The parser's message in one sentence, with the nearest flag for an unknown one."""
    unknown = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
    if unknown is None:
        return " ".join(message.split())
    flag = unknown[1].partition("=")[0]
    near = difflib.get_close_matches(flag, _flags(parser), n=1)
    return f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else "; see --help")


def _flags(parser: Any) -> list[str]:
    flags: list[str] = []
    for action in parser._actions:
        flags += action.option_strings
        if isinstance(getattr(action, "_name_parser_map", None), dict):  # subcommands
            for child in action._name_parser_map.values():
                flags += _flags(child)
    return flags
