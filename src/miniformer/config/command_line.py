"""What all commands share: flags made from dataclasses, one clear message for a mistake."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse

from miniformer.config import NoEffectWarning, RenamedWarning, StrictConfig, UserError
from miniformer.utils.streams import printable_output


def command_parser(description: str) -> jsonargparse.ArgumentParser:
    """Parser that raises its errors instead of printing them."""
    jsonargparse.set_parsing_settings(docstring_parse_style=_google_style())
    return jsonargparse.ArgumentParser(
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )


def add_config_flags(
    parser: jsonargparse.ArgumentParser, config: type[StrictConfig], *, skip: tuple[str, ...] = ()
) -> None:
    """Adds a flag for each field of a config, under the headings that its `option`s name.

    Former names of fields are flags that `--help` does not list.

    Args:
        parser: parser of the command.
        config: the config class.
        skip: fields without a flag.
    """
    names_by_group: dict[str, list[str]] = {}
    for field in dataclasses.fields(config):
        group = field.metadata.get("group") or config.__name__
        names_by_group.setdefault(group, []).append(field.name)
    for group, names in names_by_group.items():
        others = {field.name for field in dataclasses.fields(config)} - set(names)
        parser.add_argument_group(group).add_class_arguments(
            config, as_group=False, skip=others | set(skip), fail_untyped=False
        )
    types = get_type_hints(config)
    for former, name in config.former_names.items():
        parser.add_argument(
            f"--{former}", type=types[name], default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help text with `default: X` for each flag, and without flags that append to a list."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return re.sub(r", --\w+\+ \S+", "", super()._format_action_invocation(action))

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default == argparse.SUPPRESS or not action.option_strings:
            return action.help or ""
        default = action.default or json.dumps(action.default)
        return f"{action.help} (default: {default})"


def run_command(
    parser: jsonargparse.ArgumentParser,
    argv: list[str] | None,
    run: Callable[[dict[str, Any]], int],
    *,
    defaults: bool = True,
) -> int:
    """Parses `arguments` (None: the process's own) and runs the command with them.

    Args:
        parser: of the command.
        arguments: its words.
        run: given the values by name.
        defaults: whether they include what was not said.

    Returns:
        The exit code: what `run` returns, 2 after a user's mistake, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else argv

    def parse_and_run() -> int:
        with _user_warnings():
            try:
                values = parser.parse_args(words, defaults=defaults).as_dict()
            except jsonargparse.ArgumentError as error:
                raise UserError(_rewrite_parser_error(str(error), parser, words)) from None
            values.pop("config", None)
            return run(values)

    return run_guarded(parse_and_run)


def run_guarded(run: Callable[[], int]) -> int:
    """What `run` returns; 2 after a user's mistake, which is told, and 130 after Ctrl-C."""
    with printable_output():
        try:
            return run()
        except UserError as error:
            print(f"miniformer: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nminiformer: stopped; nothing more was written", file=sys.stderr)
            return 130


def _google_style() -> Any:
    from docstring_parser import DocstringStyle

    return DocstringStyle.GOOGLE


@contextlib.contextmanager
def _user_warnings() -> Iterator[None]:
    """Shows our warnings to a user, who has no use for the line of code that gave them."""
    with warnings.catch_warnings():
        for shown in (NoEffectWarning, RenamedWarning):
            warnings.simplefilter("always", shown)
        show = warnings.showwarning

        def tell(message: Any, category: type[Warning], *more: Any, **options: Any) -> None:
            if category in (NoEffectWarning, RenamedWarning):
                print(f"miniformer: warning: {message}", file=sys.stderr)
            else:
                show(message, category, *more, **options)

        warnings.showwarning = tell
        yield


_TYPE_NAMES = {
    "bool": "true or false",
    "dict": 'an object, such as {"n_layers": 4}',
    "float": "a number",
    "int": "an integer",
    "NoneType": "null",
    "str": "a string",
}


def _rewrite_parser_error(
    message: str, parser: jsonargparse.ArgumentParser, argv: list[str]
) -> str:
    """The parser's message in the words of this house, with the nearest flag for an unknown one."""
    message = " ".join(message.split())
    names = _flag_names(parser, argv)
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        flag = found[1].partition("=")[0]
        if not flag.startswith("-"):
            return f"unexpected argument {flag!r}; see --help"
        return f"unknown flag {flag}{_suggest_name(flag, names)}"
    if found := re.search(r'key "(\w+)": .*?[EeGg](?:iven|ot) value: (.*)$', message):
        types = [
            _TYPE_NAMES.get(name, name)
            for name in re.findall(r"Expected a <class '(\w+)'>", message)
        ]
        if types:
            return f"{found[1]} must be {' or '.join(dict.fromkeys(types))}, not {found[2]}"
    if found := re.search(r"arguments are required: (.*)", message):
        missing = [name.rpartition(".")[2] for name in found[1].split(", ")]
        return f"missing: {', '.join(missing)}; see --help"
    file = _config_path(argv)
    if found := re.search(r"Option '(\w+)' is not accepted", message):
        known = [name.removeprefix("--") for name in names]
        return f"{file}: unknown field {found[1]!r}{_suggest_name(found[1], known)}"
    if "File does not exist" in message:
        return f"{file}: no such file"
    if "Unexpected config" in message:
        return f"{file}: expected flags and their values, such as 'batch_size: 16'"
    if "Problems parsing config" in message:
        problem = message.partition("parsing config: ")[2].replace(' in "<unicode string>",', " at")
        return f"{file}: not YAML: {problem}"
    return message


def _suggest_name(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; see --help"


def _flag_names(parser: Any, argv: list[str]) -> list[str]:
    """The flags of the chosen subcommand, or of a parser that has none."""
    flags: list[str] = []
    for action in parser._actions:
        children = getattr(action, "_name_parser_map", None)
        if isinstance(children, dict):
            for place, name in enumerate(argv):
                if name in children:
                    return _flag_names(children[name], argv[place + 1 :])
        flags += action.option_strings if action.help != argparse.SUPPRESS else []
    return flags


def _config_path(argv: list[str]) -> str:
    """The value of the last --config."""
    joined = " ".join(re.sub(r"^--config=", "--config ", word) for word in argv)
    files: list[str] = re.findall(r"--config (\S+)", joined)
    return files[-1] if files else "config"


def python_command() -> str:
    """How to call this Python from a shell: `python` where that is the same one."""
    this, named = Path(sys.executable), Path(shutil.which("python") or "")
    # Environments are links to one and the same file, so the folder counts as well.
    if named.parent == this.parent and named.samefile(this):
        return "python"
    near = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if near.startswith("..") else near)


def miniformer_command() -> str:
    """How to call the `miniformer` command of this installation from a shell."""
    beside = Path(sys.executable).with_name("miniformer")
    if shutil.which("miniformer") == str(beside):
        return "miniformer"
    return f"{python_command()} -m miniformer.cli"
