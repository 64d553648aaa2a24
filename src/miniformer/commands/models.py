"""Helpers of the commands that use a model: its directory, threads, columns, progress."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from miniformer.config import UserError
from miniformer.config.command_line import add_config_flags, resolve_model
from miniformer.config.train_settings import FieldSettings


def add_field_flags(parser: Any) -> None:
    """Adds the flags of `FieldSettings`; null: as in the training data."""
    add_config_flags(parser, FieldSettings)


def pop_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Removes the given fields of `FieldSettings` from the values of a command.

    Raises:
        ConfigError: a field is invalid.
    """
    fields = {name: values.pop(name, None) for name in FieldSettings.__dataclass_fields__}
    given = {name: value for name, value in fields.items() if value is not None}
    FieldSettings.from_dict(given)  # reports errors before torch is imported
    return given


def print_exits(pipeline: Any) -> None:
    """Prints the mean number of layers that records used, if the model has early exits."""
    policy = getattr(pipeline.model, "exit_policy", None)
    if policy is not None:
        print(policy, file=sys.stderr)


def add_adapter_flag(parser: Any) -> None:
    """Adds the flag of `load_pipeline`'s `adapter`."""
    parser.add_argument(
        "--adapter", type=str, help="adapter directory that is added to the model, its base"
    )


def add_adapters_flags(parser: Any) -> None:
    """Adds the flags of `load_adapters`."""
    parser.add_argument(
        "--adapters",
        type=dict[str, str] | None,
        default=None,
        help='adapter directories by name, such as \'{"topic": "A", "spam": "B"}\'; '
        "--adapter_field says which one is used",
    )
    parser.add_argument(
        "--adapter_field",
        type=str,
        help="field of the records with the name of their adapter; empty or null: the model itself",
    )


def check_adapters(values: dict[str, Any]) -> None:
    """Checks the flags of `load_adapters`.

    Raises:
        UserError: one of them is missing, or `adapter` is given, too.
    """
    adapters, field = values["adapters"], values["adapter_field"]
    if adapters is None and field is None:
        return
    if not adapters or field is None:
        raise UserError(
            "adapters and adapter_field go together: the first names adapter directories, the "
            "second the field of the records that says which one is used"
        )
    if values["adapter"] is not None:
        raise UserError("adapter is one for all inputs; leave it out, or leave adapters out")


def load_adapters(pipeline: Any, adapters: dict[str, str]) -> Any:
    """Adds adapters to a pipeline; returns a function of inputs and their adapters' names.

    The function is `predict` of the component of the kind `adapter_format`. The inputs are read as
    the task of the last adapter needs them.

    Raises:
        UserError: an adapter is of another base, or adapters read different fields.
    """
    from functools import partial

    from miniformer import registry
    from miniformer.commands.inputs import input_field

    adapter_format, fields = registry.get("adapter_format", "peft"), dict[str, str]()
    for name, directory in adapters.items():
        adapter_format.add_directory(pipeline, directory, name=name)
        fields[name] = input_field(pipeline.task)
    if len(set(fields.values())) > 1:
        described = ", ".join(f"{name}: {field}" for name, field in fields.items())
        raise UserError(f"adapters read different fields ({described}); predict them apart")
    return partial(adapter_format.predict, pipeline)


def load_pipeline(directory: str, threads: int | None, adapter: str | None = None) -> Any:
    """The pipeline of a model directory or a run folder.

    Args:
        directory: of the model.
        threads: CPU threads of torch; None: its default.
        adapter: adapter directory.

    Raises:
        UserError: `threads` is out of range, or the directory is not a model.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads must be at least 1, not {threads}")
    import torch

    from miniformer.checkpoint.pipeline import load

    if threads is not None:
        torch.set_num_threads(threads)
    return load(resolve_model(directory), adapter=adapter)


@contextlib.contextmanager
def progress_bar(task: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows (done, total) as a bar, on a terminal only."""
    from rich.console import Console

    from miniformer.utils.streams import progress_bars

    with progress_bars(Console(stderr=True)) as progress:
        yield lambda done, total: progress(task, done, total)


def round_numbers(value: Any) -> Any:
    """A JSON value with at most 6 significant digits of each float."""
    if isinstance(value, dict):
        return {key: round_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [round_numbers(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
