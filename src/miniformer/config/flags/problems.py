"""Errors of the argument parser in words for users."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any

import jsonargparse

from miniformer import registry

_TYPE_NAMES = {
    "bool": "true or false",
    "dict": 'an object, such as {"n_layers": 4}',
    "float": "a number",
    "int": "an integer",
    "list": 'a list, such as ["a", "b"]',
    "NoneType": "null",
    "str": "a string",
}


def rewrite_parser_error(message: str, parser: jsonargparse.ArgumentParser, argv: list[str]) -> str:
    """Parser message reworded for users, with the closest flag for an unknown one."""
    message = " ".join(message.split())
    names = _flag_names(parser, argv)
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        flag = match[1].partition("=")[0]
        if not flag.startswith("-"):
            return _unexpected_argument(parser, argv, match[1])
        return f"unknown flag {flag}{_suggest_name(flag, names)}"
    if match := re.search(r'key "(\w+)": .*?[EeGg](?:iven|ot) value: (.*)$', message):
        if "<class 'dict'>" in message and (problem := _object_problem(match[2])):
            return f"{match[1]} must be an object, and {match[2]} {problem}"
        types = [
            _TYPE_NAMES.get(name, name)
            for name in re.findall(r"Expected a <class '(\w+)'>", message)
        ]
        if types:
            return f"{match[1]} must be {' or '.join(dict.fromkeys(types))}, not {match[2]}"
    if match := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
        known = re.findall(r"'(.*?)'", match[2])
        return registry.unknown_name_message("command", match[1], known)
    if match := re.search(r"arguments are required: (.*)", message):
        missing = [name.rpartition(".")[2] for name in match[1].split(", ")]
        return f"missing: {', '.join(missing)}; see --help"
    file = (re.findall(r"--config[ =](\S+)", " ".join(argv)) or ["config"])[-1]
    if match := re.search(r"Option '(\w+)' is not accepted", message):
        known = [name.removeprefix("--") for name in names]
        return f"{file}: unknown field {match[1]!r}{_suggest_name(match[1], known)}"
    if "File does not exist" in message:
        return f"{file}: no such file"
    if "Unexpected config" in message:
        return f"{file}: expected flags and their values, such as 'batch_size: 16'"
    if "Problems parsing config" in message:
        problem = message.partition("parsing config: ")[2].replace(' in "<unicode string>",', " at")
        return f"{file}: not YAML: {problem}"
    return message


def _unexpected_argument(parser: Any, argv: list[str], start: str) -> str:
    """Problem of an argument without a flag, of which the parser's message has the first word."""
    first_flag = next((n for n, item in enumerate(argv) if item.startswith("-")), len(argv))
    late = [item for item in argv[first_flag:] if item.startswith(start)]
    actions = find_subparser(parser, argv)[0]._actions
    takes_many = any(not item.option_strings and item.nargs in ("*", "+") for item in actions)
    hint = "; write such arguments before the flags" if late and takes_many else ""
    return f"unexpected argument {[*late, start][0]!r}{hint}; see --help"


def _suggest_name(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {matches[0]}?" if matches else "; see --help"


def _object_problem(text: str) -> str:
    """Problem of an object in broken JSON or YAML, with its place; empty: there is none."""
    import yaml  # type: ignore[import-untyped]

    if not text.startswith("{"):
        return ""
    try:
        yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        column = len(text) if mark is None else min(mark.column, len(text))
        position = (
            "its end" if column == len(text) else f"character {column + 1}, {text[column:][:10]!r}"
        )
        return f"is not JSON or YAML: {error.problem} at {position}"
    except yaml.YAMLError as error:
        return f"is not JSON or YAML: {error}"
    return ""


def find_subparser(parser: Any, argv: list[str]) -> tuple[Any, int]:
    """The parser of the subcommand in `argv`, or the parser itself; the index of its arguments."""
    for action in parser._actions:
        children = getattr(action, "_name_parser_map", None)
        if isinstance(children, dict):
            for index, name in enumerate(argv):
                if name in children:
                    child, first = find_subparser(children[name], argv[index + 1 :])
                    return child, index + 1 + first
    return parser, 0


def _flag_names(parser: Any, argv: list[str]) -> list[str]:
    """Flags of the subcommand in `argv`, or of the parser itself."""
    actions = find_subparser(parser, argv)[0]._actions
    shown = (action for action in actions if action.help != argparse.SUPPRESS)
    return [flag for action in shown for flag in action.option_strings]
