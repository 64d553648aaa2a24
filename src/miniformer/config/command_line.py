"""Helpers of the commands: flags from configs, user errors, warnings."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse
from docstring_parser import DocstringStyle

from miniformer.config import (
    NoEffectWarning,
    PluginWarning,
    RenamedWarning,
    StrictConfig,
    UserError,
)
from miniformer.config.flags.problems import find_subparser, rewrite_parser_error
from miniformer.config.flags.spelling import normalize_flags, reject_switch_values
from miniformer.utils.streams import discard_closed_output, printable_output, read_stdin

_FILES_FLAG = "files_flag"  # attribute of a parser, see `command_parser`
_MAX_USAGE_FLAGS = 6  # of a usage line that lists its flags
_FOR_USERS = (NoEffectWarning, PluginWarning, RenamedWarning)  # printed as one line
_MODEL_FILE, _RUN_FILE = "format_version", "train_config.json"  # of model and run folders


def command_parser(
    description: str, *, files_flag: str | None = None, **options: Any
) -> jsonargparse.ArgumentParser:
    """Parser that raises its errors instead of printing them.

    Args:
        description: text at the start of the help.
        files_flag: flag that files without a flag stand for, such as `--train_path`.
        **options: options of `argparse.ArgumentParser`.
    """
    jsonargparse.set_parsing_settings(docstring_parse_style=DocstringStyle.GOOGLE)
    if files_flag is not None:
        options["usage"] = "%(prog)s [FILE ...] [flags]"
    parser = jsonargparse.ArgumentParser(
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        print_config=None,
        **options,
    )
    setattr(parser, _FILES_FLAG, files_flag)
    return parser


def add_config_flags(
    parser: jsonargparse.ArgumentParser,
    config: type[StrictConfig],
    *,
    skip: tuple[str, ...] = (),
    usual: tuple[str, ...] = (),
) -> None:
    """Adds a flag for each field of a config, under the heading of the part that declares it.

    Former names of fields are flags that `--help` does not list.

    Args:
        parser: parser of the command.
        config: the config class.
        skip: fields without a flag.
        usual: fields under a first heading of their own.
    """
    parts = [base for base in reversed(config.__bases__) if base is not StrictConfig] or [config]
    groups: list[tuple[str | None, type[StrictConfig], set[str]]] = [
        (getattr(part, "heading", part.__name__), part, {*usual}) for part in parts
    ]
    if usual:
        others = {field.name for field in dataclasses.fields(config)} - {*usual}
        groups = [("usual flags", part, others) for part in parts] + groups
    added: dict[str | None, Any] = {}
    for heading, part, left_out in groups:
        names = {field.name for field in dataclasses.fields(part)}
        if not names <= (left_out := left_out | {*skip}):
            if heading not in added:
                added[heading] = parser.add_argument_group(heading)
            added[heading].add_class_arguments(
                part, as_group=False, skip=left_out & names, fail_untyped=False
            )
    types = get_type_hints(config)
    for former, name in config.former_names.items():
        parser.add_argument(
            f"--{former}", type=types[name], default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help text with `default: X` for each flag, and without flags that append to a list.

    The usage line has `[flags]` for more than a few flags.
    """

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **kwargs: Any
    ) -> None:
        """Adds a usage line that fits a line of the terminal."""
        actions = list(actions)
        named = [action for action in actions if action.option_strings]
        self._prog = self._prog.replace(" [options]", "")
        if usage is None and len(named) > _MAX_USAGE_FLAGS:
            others = [action for action in actions if not action.option_strings]
            parts = [
                self._format_args(x, self._get_default_metavar_for_positional(x)) for x in others
            ]
            usage = " ".join(["%(prog)s", *parts, "[flags]"])
        super().add_usage(usage, actions, *args, **kwargs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return re.sub(r", --\w+\+ \S+", "", super()._format_action_invocation(action))

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default == argparse.SUPPRESS or not action.option_strings:
            return action.help or ""
        default = action.default or json.dumps(action.default)
        return f"{action.help} (default: {default})"


def parse_flags(
    parser: jsonargparse.ArgumentParser, argv: list[str] | None, *, defaults: bool = True
) -> dict[str, Any]:
    """Parses the arguments of a command into values by name.

    Args:
        parser: parser of the command.
        argv: arguments; None: those of the process.
        defaults: add defaults for flags that are not given.

    Raises:
        UserError: an argument is unknown, missing or invalid.
    """
    args = _files_as_flag(parser, sys.argv[1:] if argv is None else argv)
    try:
        values: dict[str, Any] = parser.parse_args(args, defaults=defaults).as_dict()
    except jsonargparse.ArgumentError as error:
        return _parse_again(parser, argv, args, error, defaults)
    values.pop("config", None)
    return values


def _parse_again(
    parser: Any, argv: list[str] | None, args: list[str], error: Exception, defaults: bool
) -> dict[str, Any]:
    """Values of arguments that were an error, if other spellings of their flags are none."""
    argv = sys.argv[1:] if argv is None else argv
    reject_switch_values(parser, argv)
    if (normalized := normalize_flags(parser, argv)) != argv:
        return parse_flags(parser, normalized, defaults=defaults)
    raise UserError(rewrite_parser_error(str(error), parser, args)) from None


def _files_as_flag(parser: Any, argv: list[str]) -> list[str]:
    """Arguments in which files without a flag are the value of the flag that they stand for."""
    parser, first = find_subparser(parser, argv)
    flag = getattr(parser, _FILES_FLAG, None)
    if flag is None:
        return argv
    files, others, rest = [], argv[:first], iter(argv[first:])
    for item in rest:
        if item == "-" or not item.startswith("-"):
            files.append(item)
            continue
        others.append(item)
        action = parser._option_string_actions.get(item)
        takes_value = "=" not in item and (action is None or action.nargs != 0)
        if takes_value and (value := next(rest, None)) is not None:
            others.append(value)
    if files:
        reject_switch_values(parser, argv)
        argv = [*others, *_flag_of_files(files, flag, others)]
    return argv


def _flag_of_files(files: list[str], flag: str, others: list[str]) -> list[str]:
    """Raises a UserError if the flag is among the other arguments."""
    if any(item.partition("=")[0] == flag for item in others):
        raise UserError(
            f"unexpected argument {files[0]!r}: files without a flag are those of {flag}, which is "
            "given, too; leave one out, or name several files without it"
        )
    return [flag, files[0] if len(files) == 1 else json.dumps(files)]


class CommandExit:
    """Exit code of a command, which sets it."""

    code = 0


@contextlib.contextmanager
def command_context() -> Iterator[CommandExit]:
    """Context of a command: prints a user error and sets the exit code 2, or 130 after Ctrl-C."""
    command = CommandExit()
    UserError.num_commands += 1
    with printable_output():
        try:
            with _user_warnings():
                yield command
            sys.stdout.flush()
        except UserError as error:
            print(f"miniformer: error: {error}", file=sys.stderr)
            command.code = 2
        except BrokenPipeError:
            if not discard_closed_output():
                raise
            command.code = 141  # as of a program that SIGPIPE ends
        except KeyboardInterrupt:
            print("\nminiformer: interrupted; nothing more was written", file=sys.stderr)
            command.code = 130
        finally:
            UserError.num_commands -= 1


@contextlib.contextmanager
def _user_warnings() -> Iterator[None]:
    """Prints warnings for users without the line of code that emitted them."""
    with warnings.catch_warnings():
        for category in _FOR_USERS:
            warnings.simplefilter("always", category)
        original = warnings.showwarning

        def show(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if category in _FOR_USERS:
                print(f"miniformer: warning: {message}", file=sys.stderr)
            else:
                original(message, category, *args, **kwargs)

        warnings.showwarning = show
        yield


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """Context without warnings for users."""
    with warnings.catch_warnings():
        for category in _FOR_USERS:
            warnings.simplefilter("ignore", category)
        yield


def python_command() -> str:
    """Shell command of this Python: `python` if that is the same one."""
    this, on_path = Path(sys.executable), Path(shutil.which("python") or "")
    # Virtual environments link to the same file, so the folders must be equal, too.
    if on_path.parent == this.parent and on_path.samefile(this):
        return "python"
    relative = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if relative.startswith("..") else relative)


def miniformer_command() -> str:
    """Shell command of this installation's `miniformer`."""
    script = Path(sys.executable).with_name("miniformer")
    if shutil.which("miniformer") == str(script):
        return "miniformer"
    return f"{python_command()} -m miniformer.cli"


def reject_file_name(text: str, argument: str, command: str, hint: str = "") -> None:
    """Refuses the name of an existing file where a text is expected.

    Raises:
        UserError: the file exists, and its name has a suffix or a folder.
    """
    try:
        is_file = ("/" in text or Path(text).suffix != "") and Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return
    if is_file:
        raise UserError(
            f"{argument} {text!r} is the name of a file, and would be used as text; "
            f"to read the file: {command} {shlex.quote(text)}{hint}"
        )


def resolve_model(directory: str, *, note: bool = True) -> str:
    """The model directory; of a run folder its best model, or the last one.

    Args:
        directory: given by the user.
        note: print a note about a run folder.
    """
    path = Path(directory)
    if (path / _RUN_FILE).exists() and not (path / _MODEL_FILE).exists():
        for name in ("best", "last"):
            if (path / name / _MODEL_FILE).exists():
                if note:
                    print(f"note: {path} is a run folder; using {path / name}", file=sys.stderr)
                return str(path / name)
    return directory


def read_utf8_stdin() -> str:
    """All of standard input.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return read_stdin()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: {error}; give the prompt as UTF-8") from None
