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
    command_parser,
    miniformer_command,
    run_command,
)
from miniformer.trainer import run_training, train_parser
from miniformer.utils.streams import read_stdin

# Commands that need only the flags that were given: the others come from a run or a model
# directory, or are defaults of `TrainConfig`.
_EXPLICIT_COMMANDS = {"train", "verify-resume", "generate"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = command_parser("Miniformer: a Transformer from a JSON-lines file to a model in use.")
    parser.add_argument("--version", action="version", version=f"miniformer {__version__}")
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("train", train_parser(), help="train a model on your text")
    commands.add_subcommand(
        "generate", _generate_parser(), help="continue a prompt with a trained model"
    )
    commands.add_subcommand(
        "predict", _predict_parser(), help="classes, values or targets of inputs, as JSON lines"
    )
    add_score_command(commands)
    add_verify_command(commands)
    add_tokenizer_command(commands)
    add_data_command(commands)
    add_hf_commands(commands)
    commands.add_subcommand(
        "demo", _demo_parser(), help="train a small model on Python's own source, now"
    )
    args = sys.argv[1:] if argv is None else argv
    return run_command(parser, args, _dispatch, defaults=not {*args[:1]} & _EXPLICIT_COMMANDS)


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
    chosen = values[values["command"]]
    chosen.pop("config", None)
    return run[values["command"]](chosen)


def _generate_parser() -> Any:
    parser = command_parser(
        "Continue prompts with a trained model. What is left out is as the model directory's "
        "generation_config.json says."
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
        help="model directory of a smaller model that guesses tokens ahead, or lookup; tells "
        "whether that was faster",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut prompts that are too long: sources at their end, texts to continue at their "
        "beginning",
    )
    add_config_flags(parser, GenerationConfig, skip=("eos_id",))
    return parser


def _run_generate(values: dict[str, Any]) -> int:
    directory, prompts, draft = (
        values.pop(name, None) for name in ("directory", "prompts", "draft")
    )
    truncate = values.pop("truncate", False)
    options = values
    GenerationConfig.from_dict(options)  # mistakes are told before torch is loaded
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

        answers, verdict = benchmark_speculation(pipeline, draft, prompts, options)
        for prompt, text in zip(prompts, answers, strict=True):
            print(prompt + text)
        print(verdict, file=sys.stderr)
        return 0
    settings = {**pipeline.generation.to_dict(), **options}
    if len(prompts) == settings["num_beams"] == settings["num_return_sequences"] == 1:
        pieces = pipeline.stream(prompts[0], **options)
        first = next(pieces, "")  # mistakes are told before anything is printed
        print(prompts[0] + first, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return 0
    for prompt, texts in zip(prompts, pipeline.generate(prompts, **options), strict=True):
        for text in [texts] if isinstance(texts, str) else texts:
            print(prompt + text)
    return 0


def _predict_parser() -> Any:
    parser = command_parser(
        "Answer inputs with a trained model, one JSON line each: classes, values, or targets."
    )
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
        help="cut inputs that are longer than the model reads, as training does; without it they "
        "are reported, their answer is null, and the exit code is 2",
    )
    return parser


def _run_predict(values: dict[str, Any]) -> int:
    given = values["inputs"]
    for word in given:
        command = f"{miniformer_command()} predict {shlex.quote(values['directory'])} -"
        _reject_file_name(word, "input", command, ", a record or a JSON value a line")
    from miniformer.checkpoint.pipeline import load

    pipeline = load(values["directory"])
    text = getattr(pipeline.task, "input_kind", "text") == "text"
    inputs: list[tuple[str, Any]] = []  # the name of each in messages, and itself
    for word in given:
        if word == "-":
            inputs += _parse_json_lines(_read_stdin(), list(pipeline.task.schema))
        else:
            name = f"input {word[:40]!r}"
            inputs.append((name, word if text else _parse_json(word, name)))
    answers, problems = _predict_valid(pipeline, inputs, truncate=values["truncate"])
    for problem in problems:
        print(f"miniformer: error: {problem}", file=sys.stderr)
    for number in range(len(inputs)) if answers else ():
        print(json.dumps(answers.get(number), ensure_ascii=False))
    return 2 if problems else 0


def _predict_valid(
    pipeline: Any, inputs: list[tuple[str, Any]], *, truncate: bool
) -> tuple[dict[int, Any], list[str]]:
    """The answers to inputs by number, and messages about those that cannot be answered."""
    left = list(range(len(inputs)))
    problems: list[str] = []
    while left:
        try:
            found = pipeline.predict([inputs[number][1] for number in left], truncate=truncate)
            return dict(zip(left, found, strict=True)), problems
        except InputError as error:
            problems += [
                error.message_for(place, inputs[left[place]][0]) for place in error.problems
            ]
            left = [each for place, each in enumerate(left) if place not in error.problems]
    return {}, problems


def _reject_file_name(text: str, argument: str, command: str, hint: str = "") -> None:
    """Refuses the name of an existing file where a text is expected.

    Raises:
        UserError: it is one, and looks like one: it has a suffix or a folder.
    """
    try:
        is_file = ("/" in text or Path(text).suffix != "") and Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a null character: a text
        return
    if is_file:
        raise UserError(
            f"{argument} {text!r} is the name of a file, and would be taken as the text itself; "
            f"to read the file: {command} < {shlex.quote(text)}{hint}"
        )


def _parse_json_lines(text: str, fields: list[str]) -> list[tuple[str, Any]]:
    """Inputs, or those of records that have one, each with its line.

    Args:
        text: JSON lines.
        fields: those of the task's records; the first that a record has is its input.
    """
    names = ["input", "source", *fields]
    inputs = []
    # Only line feeds end a line: U+2028 and others may be in a string.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            where = f"standard input:{number}"
            value = _parse_json(line, where)
            if isinstance(value, dict):
                found = [value[name] for name in names if name in value]
                if not found:
                    needed = " and no ".join(map(repr, dict.fromkeys(names)))
                    raise UserError(f"{where}: the record has no {needed}")
                value = found[0]
            inputs.append((f"{where}:", value))
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
