"""The training command: `python -m miniformer.trainer` and `miniformer train`.

Its flags are the fields of `TrainConfig`; `--config FILE.yaml` sets several, and flags override it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.config.command_line import (
    add_config_flags,
    command_context,
    command_parser,
    miniformer_command,
    parse_flags,
)
from miniformer.train_config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from miniformer.training.evaluate import RunResult


def train_parser() -> Any:
    """Parser of the training command."""
    parser = command_parser("Train a Transformer on a JSON-lines or text file.")
    parser.add_argument(
        "--config", action="config", help="YAML or JSON file with any of the fields below"
    )
    add_config_flags(parser, TrainConfig)
    return parser


def add_train_command(commands: Any) -> None:
    """Adds the subcommand."""
    commands.add_subcommand("train", train_parser(), help="train a model on your data")


def run_training(values: dict[str, Any]) -> int:
    """Trains with the given flags; returns the exit code."""
    config = TrainConfig.from_dict(values)
    # Only now: these imports take seconds.
    from miniformer.training.callbacks.progress import make_console
    from miniformer.training.resume.config import resume_config
    from miniformer.training.run import train

    if config.resume is not None:
        config = resume_config(Path(config.resume), values)
    console = make_console()
    return report_result(train(config, console=console), console)


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
        command.code = run_training(parse_flags(train_parser(), argv, defaults=False))
    return command.code


if __name__ == "__main__":
    sys.exit(main())
