"""The `miniformer` command and its subcommands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miniformer import __version__
from miniformer.commands.data import add_data_command, run_data
from miniformer.commands.hf import add_hf_commands, run_export, run_import
from miniformer.commands.score import add_score_command, run_score
from miniformer.commands.tokenizer import add_tokenizer_command, run_tokenizer
from miniformer.commands.verify_resume import add_verify_command, run_verify
from miniformer.config import GenerationConfig, InputError, UserError
from miniformer.config.command_line import (
    add_config_flags,
    command_context,
    command_parser,
    miniformer_command,
    parse_flags,
)
from miniformer.trainer import run_training, train_parser
from miniformer.utils.streams import read_stdin

# Commands that get only the given flags: other values come from a run, a model directory or
# `TrainConfig`.
_EXPLICIT_COMMANDS = {"train", "verify-resume", "generate"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = command_parser("Miniformer: train and use Transformers.")
    parser.add_argument("--version", action="version", version=f"miniformer {__version__}")
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("train", train_parser(), help="train a model on your text")
    commands.add_subcommand(
        "generate", _generate_parser(), help="continue a prompt with a trained model"
    )
    commands.add_subcommand(
        "predict",
        _predict_parser(),
        help="print classes, values or targets of inputs as JSON lines",
    )
    add_score_command(commands)
    add_verify_command(commands)
    add_tokenizer_command(commands)
    add_data_command(commands)
    add_hf_commands(commands)
    commands.add_subcommand(
        "demo",
        _demo_parser(),
        help="train a small model on the source of Python's standard library",
    )
    args = sys.argv[1:] if argv is None else argv
    defaults = not {*args[:1]} & _EXPLICIT_COMMANDS
    with command_context() as command:
        command.code = _dispatch(parse_flags(parser, args, defaults=defaults))
    return command.code


def _dispatch(values: dict[str, Any]) -> int:
    run: dict[str, Callable[[dict[str, Any]], int]] = {
        "train": run_training,
        "generate": _run_generate,
        "predict": _run_predict,
        "score": run_score,
        "verify-resume": run_verify,
        "tokenizer": run_tokenizer,
        "data": run_data,
        "import": run_import,
        "export": run_export,
        "demo": _run_demo,
    }
    command_values = values[values["command"]]
    command_values.pop("config", None)
    return run[values["command"]](command_values)


def _generate_parser() -> Any:
    parser = command_parser(
        "Continue prompts with a trained model. The model directory's generation_config.json "
        "overrides the defaults below."
    )
    parser.add_argument("directory", type=str, help="model directory")
    parser.add_argument(
        "prompts",
        type=str,
        nargs="+",
        help="one or more prompts; '-' reads one from standard input",
    )
    parser.add_argument(
        "--draft",
        type=str,
        help="model directory of a draft model for speculative decoding, or lookup; the speedup is "
        "printed",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="truncate prompts that are too long: sources at the end, other prompts at the start",
    )
    add_config_flags(parser, GenerationConfig, skip=("eos_id",))
    return parser


def _run_generate(values: dict[str, Any]) -> int:
    directory, prompts, draft = (
        values.pop(name, None) for name in ("directory", "prompts", "draft")
    )
    truncate = values.pop("truncate", False)
    options = values
    GenerationConfig.from_dict(options)  # reports errors before torch is imported
    options, _ = GenerationConfig.current_names(options, warn=False)
    for prompt in prompts:
        _reject_file_name(
            prompt, "prompt", f"{miniformer_command()} generate {shlex.quote(directory)} -"
        )
    prompts = [_read_stdin() if prompt == "-" else prompt for prompt in prompts]
    from miniformer.checkpoint.pipeline import load

    pipeline = load(directory)
    options["truncate"] = truncate
    if draft is not None:
        from miniformer.checkpoint.speculation_check import benchmark_speculation

        texts, summary = benchmark_speculation(pipeline, draft, prompts, options)
        for prompt, text in zip(prompts, texts, strict=True):
            print(prompt + text)
        print(summary, file=sys.stderr)
        return 0
    settings = {**pipeline.generation.to_dict(), **options}
    if len(prompts) == settings["num_beams"] == settings["num_return_sequences"] == 1:
        stream = pipeline.stream(prompts[0], **options)
        first = next(stream, "")  # raises errors before anything is printed
        print(prompts[0] + first, end="", flush=True)
        for text in stream:
            print(text, end="", flush=True)
        print()
        return 0
    for prompt, result in zip(prompts, pipeline.generate(prompts, **options), strict=True):
        for text in [result] if isinstance(result, str) else result:
            print(prompt + text)
    return 0


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


def _run_predict(values: dict[str, Any]) -> int:
    command = f"{miniformer_command()} predict {shlex.quote(values['directory'])} -"
    for arg in values["inputs"]:
        _reject_file_name(arg, "input", command, ", a record or a JSON value a line")
    from miniformer.checkpoint.pipeline import load

    pipeline = load(values["directory"])
    is_text = getattr(pipeline.task, "input_kind", "text") == "text"
    inputs: list[tuple[str, Any]] = []  # each with its name in messages
    for arg in values["inputs"]:
        if arg == "-":
            inputs += _parse_json_lines(_read_stdin(), list(pipeline.task.schema))
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


def _reject_file_name(text: str, argument: str, command: str, hint: str = "") -> None:
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
            f"to read the file: {command} < {shlex.quote(text)}{hint}"
        )


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


def _read_stdin() -> str:
    try:
        return read_stdin()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: {error}; give the prompt as UTF-8") from None


def _demo_parser() -> Any:
    parser = command_parser(
        "Train a small language model on the source code of Python's standard library."
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="training time")
    parser.add_argument("--work_dir", type=str, default="runs", help="folder for the run")
    return parser


def _run_demo(values: dict[str, Any]) -> int:
    if not 0.01 <= values["minutes"] <= 10_000:
        raise UserError(f"minutes must be from 0.01 to 10000, not {values['minutes']}")
    from miniformer.commands.demo import run_demo

    return run_demo(**values)


if __name__ == "__main__":
    sys.exit(main())
