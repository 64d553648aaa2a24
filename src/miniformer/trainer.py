"""The training command: `miniformer train`, also `python -m miniformer.trainer`.

Its flags are the fields of `TrainConfig`; `--config FILE.yaml` sets several, and flags override it.
Files without a flag are `train_path`: `train FILE` is the same as `train --train_path FILE`.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer import __version__
from miniformer.config.command_line import (
    add_config_flags,
    command_context,
    command_parser,
    miniformer_command,
    parse_flags,
    quiet_warnings,
)
from miniformer.train_config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from miniformer.training.evaluate import RunResult


# In the order of `TrainConfig`.
USUAL_FLAGS = (
    "train_path", "val_path", "test_path", "task", "input_field", "label_field", "lr", "max_epochs",
    "max_time", "resume",
)  # fmt: skip


DESCRIPTION = "Train a Transformer on your data. FILE is the same as --train_path FILE."
FILES_FLAG = "--train_path"
ONLY_GIVEN = True  # other values are those of `TrainConfig`, or of the run to resume


def train_parser() -> Any:
    """Parser of the training command."""
    parser = command_parser(DESCRIPTION, files_flag=FILES_FLAG)
    add_arguments(parser)
    return parser


def add_arguments(parser: Any, *, only_settings: bool = False) -> None:
    """Adds the arguments.

    Args:
        parser: parser of the command.
        only_settings: leave out the flags that are no settings of a run.
    """
    parser.add_argument(
        "--config", action="config", help="YAML or JSON file with any of the fields below"
    )
    for name, text in {} if only_settings else _COMMAND_FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    add_config_flags(parser, TrainConfig, usual=USUAL_FLAGS)


_COMMAND_FLAGS = {
    "print_config": "print a YAML file with every setting, its meaning and its value, and exit; "
    "--config reads it",
    "dry_run": "read the data, print the settings, the predicted memory and the estimated time, "
    "and exit; nothing is trained or written",
    "quiet": "print errors and the final result only",
}


def run(values: dict[str, Any]) -> int:
    """Trains with the given flags; returns the exit code."""
    flags = {name: values.pop(name, False) for name in _COMMAND_FLAGS}
    if flags["print_config"]:
        from miniformer.config.flags.reference import config_template

        print(config_template(TrainConfig, TrainConfig.current_names(values)[0]))
        return 0
    config = TrainConfig.from_dict(values)
    if not flags["quiet"]:
        print(start_line(config), flush=True)
    # Only now: these imports take seconds.
    from miniformer.training.resume.config import AUTO, resume_config
    from miniformer.training.run import train
    from miniformer.utils.streams import make_console

    if config.resume not in (None, AUTO):
        config = resume_config(Path(str(config.resume)), values)
    console = make_console()
    progress_console = make_console(quiet=flags["quiet"])
    with quiet_warnings() if flags["quiet"] else contextlib.nullcontext():
        if flags["dry_run"]:
            from miniformer.training.setup.estimate import dry_run

            print(dry_run(config, progress_console))
            return 0
        if config.folds is not None and config.fold is None:
            return _run_folds(config, progress_console, console if flags["quiet"] else None)
        result = train(config, console=progress_console)
    return report_result(result, console)


def _run_folds(config: TrainConfig, console: Console, table_console: Console | None) -> int:
    """Trains on each fold; returns the exit code. Prints the table on `table_console`, too."""
    from miniformer.training.cross_validation import cross_validate, format_table

    table = cross_validate(config, console=console)
    if table_console is not None:
        table_console.print("\n".join(format_table(table)))
    return 0 if table.interrupted is None else 128 + table.interrupted


def start_line(config: TrainConfig) -> str:
    """The first line of a run, printed before the imports that take seconds."""
    if config.resume not in (None, "auto"):
        return f"miniformer {__version__}: resuming {config.resume}"
    paths = config.train_path
    if not isinstance(paths, str):
        first = paths[0]["path"] if isinstance(paths[0], dict) else paths[0]
        paths = f"{first} and {len(paths) - 1} more" if len(paths) > 1 else first
    return f"miniformer {__version__}: training for {config.task.replace('_', ' ')} on {paths}"


def report_result(result: RunResult, console: Console) -> int:
    """Prints metrics, the model directory and a command that uses it; returns the exit code."""
    from miniformer.training.callbacks.progress import format_metrics

    if result.interrupted is not None:
        console.print("training interrupted; the model so far is saved")
    for split, title in (("val", "validation"), ("test", "test")):
        metrics = {
            name: result.metrics[f"{split}_{name}"]
            for name in result.task.metrics
            if f"{split}_{name}" in result.metrics
        }
        if metrics:
            step = f", at step {result.metrics['step']:.0f}" if split == "val" else ""
            console.print(f"{title} {format_metrics(metrics)}{step}")
    console.print(f"model: {result.model}")
    directory = shlex.quote(str(result.model))
    console.print(f"use it: {miniformer_command()} {result.task.usage_command(directory)}")
    return 0 if result.interrupted is None else 128 + result.interrupted


def main(argv: list[str] | None = None) -> int:
    """Runs the training command; returns its exit code."""
    with command_context() as command:
        command.code = run(parse_flags(train_parser(), argv, defaults=False))
    return command.code


if __name__ == "__main__":
    sys.exit(main())
