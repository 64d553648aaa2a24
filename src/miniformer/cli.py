"""The `miniformer` command and its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from miniformer import __version__
from miniformer.commands.completion import add_completion_command, run_completion
from miniformer.commands.data import add_data_command, run_data
from miniformer.commands.demo import add_demo_command, run_demo
from miniformer.commands.evaluate import add_evaluate_command, run_evaluate
from miniformer.commands.generate import add_generate_command, run_generate
from miniformer.commands.hf import (
    add_export_command,
    add_import_command,
    run_export,
    run_import,
)
from miniformer.commands.predict import add_predict_command, run_predict
from miniformer.commands.score import add_score_command, run_score
from miniformer.commands.tokenizer import add_tokenizer_command, run_tokenizer
from miniformer.commands.verify_resume import add_verify_command, run_verify
from miniformer.config.command_line import command_context, command_parser, parse_flags
from miniformer.doctor.__main__ import add_doctor_command, run_doctor
from miniformer.trainer import add_train_command, run_training


class Command(NamedTuple):
    """A subcommand.

    Args:
        add: adds its parser to the subcommands of a parser.
        run: runs it with its values and returns the exit code.
        only_given: `run` gets the given values only: the others come from a run, a model directory
            or `TrainConfig`.
        reads_args: `add` takes the arguments of the command, too.
    """

    add: Callable[..., None]
    run: Callable[[dict[str, Any]], int]
    only_given: bool = False
    reads_args: bool = False


# In the order of the help.
COMMANDS = {
    "train": Command(add_train_command, run_training, only_given=True),
    "evaluate": Command(add_evaluate_command, run_evaluate),
    "predict": Command(add_predict_command, run_predict),
    "generate": Command(add_generate_command, run_generate, only_given=True, reads_args=True),
    "score": Command(add_score_command, run_score),
    "data": Command(add_data_command, run_data),
    "tokenizer": Command(add_tokenizer_command, run_tokenizer),
    "import": Command(add_import_command, run_import),
    "export": Command(add_export_command, run_export),
    "doctor": Command(add_doctor_command, run_doctor),
    "verify-resume": Command(add_verify_command, run_verify, only_given=True),
    "demo": Command(add_demo_command, run_demo),
    "completion": Command(
        add_completion_command, lambda values: run_completion(values, make_parser([]))
    ),
}
_COMMAND_GROUPS = (["data"], ["tokenizer"])  # commands with subcommands


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code. Without arguments it prints the help."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args in _COMMAND_GROUPS:
        args = [*args, "--help"]
    with command_context() as command:
        values = parse_flags(make_parser(args), args, defaults=not _only_given(args))
        command.code = _dispatch(values)
    return command.code


def make_parser(args: list[str]) -> Any:
    """Parser of the command with the subcommand that `args` begins with, or with all of them."""
    parser = command_parser("Miniformer: train and use Transformers.", prog="miniformer")
    parser.add_argument("--version", action="version", version=f"miniformer {__version__}")
    commands = parser.add_subcommands(required=True, dest="command", metavar="COMMAND")
    names = args[:1] if args and args[0] in COMMANDS else COMMANDS
    for name in names:
        command = COMMANDS[name]
        command.add(commands, *([args] if command.reads_args else []))
    return parser


def _only_given(args: list[str]) -> bool:
    return args[0] in COMMANDS and COMMANDS[args[0]].only_given


def _dispatch(values: dict[str, Any]) -> int:
    command_values = values[values["command"]]
    command_values.pop("config", None)
    return COMMANDS[values["command"]].run(command_values)


if __name__ == "__main__":
    sys.exit(main())
