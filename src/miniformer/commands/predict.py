"""`miniformer predict`: classes, values or targets of inputs, as JSON lines."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from miniformer.config import InputError, UserError
from miniformer.config.command_line import (
    command_parser,
    miniformer_command,
    read_utf8_stdin,
    reject_file_name,
)


def add_predict_command(commands: Any) -> None:
    """Adds the subcommand."""
    commands.add_subcommand(
        "predict",
        _predict_parser(),
        help="print classes, values or targets of inputs as JSON lines",
    )


def _predict_parser() -> Any:
    parser = command_parser("Print the class, value or target of each input, one JSON line each.")
    parser.add_argument("directory", type=str, help="model directory")
    parser.add_argument(
        "inputs",
        type=str,
        nargs="+",
        help='texts; pairs of texts and vectors as JSON, such as \'["first", "second"]\'; '
        "'-' reads records or inputs as JSON lines from standard input",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="truncate inputs that are longer than the context, as training does; without it they "
        "are errors, their output is null, and the exit code is 2",
    )
    return parser


def run_predict(values: dict[str, Any]) -> int:
    """Runs the subcommand; exit code 2: inputs are invalid."""
    command = f"{miniformer_command()} predict {shlex.quote(values['directory'])} -"
    for arg in values["inputs"]:
        reject_file_name(arg, "input", command, ", a record or a JSON value a line")
    from miniformer.checkpoint.pipeline import load

    pipeline = load(values["directory"])
    is_text = getattr(pipeline.task, "input_kind", "text") == "text"
    inputs: list[tuple[str, Any]] = []  # each with its name in messages
    for arg in values["inputs"]:
        if arg == "-":
            inputs += _parse_json_lines(read_utf8_stdin(), list(pipeline.task.schema))
        else:
            name = f"input {arg[:40]!r}"
            inputs.append((name, arg if is_text else _parse_json(arg, name)))
    predictions, problems = _predict_valid(pipeline, inputs, truncate=values["truncate"])
    for problem in problems:
        print(f"miniformer: error: {problem}", file=sys.stderr)
    for index in range(len(inputs)) if predictions else ():
        print(json.dumps(predictions.get(index), ensure_ascii=False))
    return 2 if problems else 0


def _predict_valid(
    pipeline: Any, inputs: list[tuple[str, Any]], *, truncate: bool
) -> tuple[dict[int, Any], list[str]]:
    """Predictions by index of the input, and messages about invalid inputs."""
    valid = list(range(len(inputs)))
    problems: list[str] = []
    while valid:
        try:
            results = pipeline.predict([inputs[index][1] for index in valid], truncate=truncate)
            return dict(zip(valid, results, strict=True)), problems
        except InputError as error:
            problems += [error.message_for(row, inputs[valid[row]][0]) for row in error.problems]
            valid = [index for row, index in enumerate(valid) if row not in error.problems]
    return {}, problems


def _parse_json_lines(text: str, fields: list[str]) -> list[tuple[str, Any]]:
    """Inputs, or the inputs of records, each with its line.

    Args:
        text: JSON lines.
        fields: fields of the task's records; the first that a record has is its input.
    """
    names = ["input", "source", *fields]
    inputs = []
    # Only line feeds end a line: JSON strings may contain U+2028 and others.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            location = f"standard input:{number}"
            value = _parse_json(line, location)
            if isinstance(value, dict):
                candidates = [value[name] for name in names if name in value]
                if not candidates:
                    missing = " and no ".join(map(repr, dict.fromkeys(names)))
                    raise UserError(f"{location}: the record has no {missing}")
                value = candidates[0]
            inputs.append((f"{location}:", value))
    return inputs


def _parse_json(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        from miniformer.data.reading.parsing import describe_json_error

        raise UserError(f"{location}: {describe_json_error(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location}: not JSON: {error}") from None
