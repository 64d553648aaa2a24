"""`miniformer predict`: classes, values, tags or targets of inputs, file to file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from miniformer.commands.inputs import (
    Input,
    argument_inputs,
    open_inputs,
    stdin_inputs,
)
from miniformer.commands.models import (
    add_adapter_flag,
    add_adapters_flags,
    add_field_flags,
    check_adapters,
    load_adapters,
    load_pipeline,
    pop_fields,
    print_exits,
    progress_bar,
)
from miniformer.commands.outputs import (
    Writer,
    check_prediction_file,
    format_prediction,
    open_writer,
)
from miniformer.config import InputError, UserError
from miniformer.config.command_line import miniformer_command, reject_file_name

_CHUNK_SIZE = 1024  # inputs that are read, sorted by length and predicted together
_GENERATED_CHUNK_SIZE = 64  # where texts are generated, which takes longer
_MAX_PROBLEMS = 20  # messages; further ones are counted
_DECODING = ("num_beams", "num_return_sequences", "length_penalty", "max_new_tokens")


DESCRIPTION = (
    "Predict the class, value, tags or target of each input: one JSON line each, or a table."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument(
        "inputs",
        type=str,
        nargs="*",
        help='texts; pairs of texts and vectors as JSON, such as \'["first", "second"]\'; '
        "'-' reads standard input: lines of text, or of JSON",
    )
    parser.add_argument(
        "--input",
        type=str,
        help="file to read, in the formats of train; the lines of a .txt file are texts; "
        "'-' is standard input",
    )
    parser.add_argument(
        "--output",
        type=str,
        help="file to write: .csv and .tsv are tables, others JSON lines; null and '-': standard "
        "output",
    )
    parser.add_argument(
        "--keep", type=str, help="fields of the records to write, too, such as id,date; or all"
    )
    parser.add_argument(
        "--scores",
        type=str,
        default="top",
        help="probabilities to write: none, top (of the prediction; of several labels: of each) or "
        "all (of all classes)",
    )
    parser.add_argument("--top_k", type=int, help="number of most probable classes to list")
    parser.add_argument("--num_beams", type=int, help="beams of the search, for generated targets")
    parser.add_argument(
        "--num_return_sequences", type=int, help="targets of each source: a list of the best"
    )
    parser.add_argument("--length_penalty", type=float, help="see generate")
    parser.add_argument("--max_new_tokens", type=int, help="see generate")
    parser.add_argument(
        "--weight_dtype",
        type=str,
        help="type of weights on a CPU: stored, float32, bf16, int8 or int4; inputs of products "
        "are rounded, too; null: that of the model directory, which is stored by default",
    )
    parser.add_argument("--batch_size", type=int, help="inputs at once; null: by their lengths")
    parser.add_argument("--threads", type=int, help="CPU threads; null: those that torch chooses")
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="truncate inputs that are longer than the context, as training does; without it they "
        "are errors",
    )
    parser.add_argument(
        "--on_error",
        type=str,
        default="skip",
        help="skip: an invalid input has a null line, the others are predicted, and the exit code "
        "is 2; stop: the first one ends the command",
    )
    parser.add_argument("--quiet", action="store_true", help="print errors and predictions only")
    add_adapter_flag(parser)
    add_adapters_flags(parser)
    add_field_flags(parser)


def run(values: dict[str, Any]) -> int:
    """Predicts; returns the exit code, 2 if inputs are invalid."""
    fields = pop_fields(values)
    _check_values(values)
    pipeline = load_pipeline(values["directory"], values["threads"], values["adapter"])
    adapters = values["adapters"]
    by_adapter = None if adapters is None else load_adapters(pipeline, adapters)
    inputs, total = _open(values, pipeline, fields)
    predict = _predictor(pipeline, values, by_adapter)
    keep = values["keep"] or ""
    names = "all" if keep.strip() == "all" else [name.strip() for name in keep.split(",") if name]
    is_generated = values["num_beams"] is not None or pipeline.task.name == "seq2seq"
    chunk_size = _GENERATED_CHUNK_SIZE if is_generated else _CHUNK_SIZE
    done = num_problems = 0
    with open_writer(values["output"], names) as writer, progress_bar("predicting") as progress:
        for chunk in _chunks(inputs, chunk_size):
            if not done:
                _check_keep(names, chunk[0])
            problems = _predict_chunk(chunk, predict, writer, values)
            if problems and values["on_error"] == "stop":
                raise UserError(problems[0])
            for problem in problems[: max(0, _MAX_PROBLEMS - num_problems)]:
                print(f"miniformer: error: {problem}", file=sys.stderr)
            num_problems += len(problems)
            done += len(chunk)
            if total is not None:
                progress(min(done, total), total)
    if summary := _summary(values, done, num_problems):
        print(f"miniformer: {summary}", file=sys.stderr)
    if not values["quiet"]:
        print_exits(pipeline)
    return 2 if num_problems else 0


def _summary(values: dict[str, Any], num_inputs: int, num_problems: int) -> str:
    """The written file, with its number of predictions, and the number of errors; may be empty."""
    parts = []
    if values["output"] not in (None, "-") and not values["quiet"]:
        number = num_inputs - num_problems
        parts.append(f"{number:,} prediction{'s' * (number != 1)} written to {values['output']}")
    if num_problems and num_inputs > 1:
        parts.append(f"{num_problems:,} of {num_inputs:,} inputs have errors; their lines are null")
    return "; ".join(parts)


def _check_values(values: dict[str, Any]) -> None:
    """Checks flags before the model is loaded."""
    check_adapters(values)
    if not values["inputs"] and values["input"] is None:
        raise UserError("predict needs inputs, or a file: --input FILE; see --help")
    for flag, choices in (("scores", ("none", "top", "all")), ("on_error", ("skip", "stop"))):
        if values[flag] not in choices:
            raise UserError(f"{flag} must be {', '.join(choices)}, not {values[flag]!r}")
    for flag in ("top_k", "batch_size"):
        if values[flag] is not None and values[flag] < 1:
            raise UserError(f"{flag} must be at least 1, not {values[flag]}")
    if values["output"] not in (None, "-"):
        check_prediction_file(values["output"], [values["input"]] if values["input"] else [])
    command = f"{miniformer_command()} predict {shlex.quote(values['directory'])} --input"
    for argument in values["inputs"]:
        reject_file_name(argument, "input", command)


def _open(
    values: dict[str, Any], pipeline: Any, fields: dict[str, Any]
) -> tuple[Iterator[Input], int | None]:
    """All inputs in order, and their number, if it is known."""
    task, sources = pipeline.task, list[Iterator[Input]]()
    mapping, total = pipeline.data_settings.override(fields), None
    for argument in values["inputs"]:
        is_stdin = argument == "-"
        source = stdin_inputs(task, mapping) if is_stdin else argument_inputs([argument], task)
        sources.append(source)
    if values["input"] == "-":
        sources.append(stdin_inputs(task, mapping))
    elif values["input"] is not None:
        records, total = open_inputs(values["input"], task, mapping)
        sources.append(records)
    return chain(*sources), total


def _predictor(
    pipeline: Any, values: dict[str, Any], by_adapter: Any
) -> Callable[[list[Input]], list[Any]]:
    """Function that makes predictions of a list of inputs.

    Args:
        pipeline: the model.
        values: values of the command.
        by_adapter: function of inputs and names of their adapters; None: `predict_all`.

    Raises:
        UserError: decoding flags are given, and the model generates no text.
    """
    options = {name: values[name] for name in _DECODING if values[name] is not None}
    if options and not hasattr(pipeline.task, "generation_inputs"):
        raise UserError(
            f"{next(iter(options))} is for models that generate text, not for "
            f"{pipeline.task.name}; leave it out"
        )
    options["truncate"] = values["truncate"]
    if values["weight_dtype"] is not None:
        options["weight_dtype"] = values["weight_dtype"]
    if values["batch_size"] is not None:
        options["batch_size"] = values["batch_size"]
    if by_adapter is not None:
        if (values["num_return_sequences"] or 1) > 1:
            raise UserError("num_return_sequences is for one adapter; leave adapters out")
        field = values["adapter_field"]
        return lambda inputs: list(
            by_adapter(_values(inputs), _adapter_names(inputs, field), **options)
        )
    return lambda inputs: list(pipeline.predict_all(_values(inputs), **options))


def _values(inputs: list[Input]) -> list[Any]:
    return [item.value for item in inputs]


def _adapter_names(inputs: list[Input], field: str) -> list[str | None]:
    """The adapter of each input; an empty or missing value is None.

    Raises:
        InputError: an input has no such field.
    """
    records = [item.record or {} for item in inputs]
    missing = {
        number: f"has no field {field!r} with its adapter"
        for number, record in enumerate(records)
        if field not in record
    }
    if missing:
        raise InputError(missing)
    return [None if record[field] in (None, "") else str(record[field]) for record in records]


def _predict_chunk(
    chunk: list[Input],
    predict: Callable[[list[Input]], list[Any]],
    writer: Writer,
    values: dict[str, Any],
) -> list[str]:
    """Writes the predictions of a chunk; returns messages about invalid inputs, in order."""
    problems = {row: item.problem for row, item in enumerate(chunk) if item.problem is not None}
    valid = [row for row in range(len(chunk)) if row not in problems]
    predictions: dict[int, Any] = {}
    while valid:
        try:
            results = predict([chunk[row] for row in valid])
            predictions = dict(zip(valid, results, strict=True))
            break
        except InputError as error:
            for number in error.problems:
                row = valid[number]
                problems[row] = error.message_for(number, chunk[row].location)
            valid = [row for row in valid if row not in problems]
    if not (problems and values["on_error"] == "stop"):
        for row, item in enumerate(chunk):
            prediction = predictions.get(row)
            if prediction is not None:
                prediction = format_prediction(prediction, values["scores"], values["top_k"])
            record = {"input": item.value} if item.record is None else item.record
            writer.write(record, prediction)
    return [problems[row] for row in sorted(problems)]


def _check_keep(names: list[str] | str, first: Input) -> None:
    """Checks the fields to keep against the first record.

    Raises:
        UserError: it lacks one of them.
    """
    if names == "all" or first.problem is not None:
        return
    known = ["input"] if first.record is None else list(first.record)
    for name in names:
        if name not in known:
            location = first.location.removesuffix(":")
            raise UserError(f"keep: {location} has no field {name!r} (it has {', '.join(known)})")


def _chunks(inputs: Iterator[Input], size: int) -> Iterator[list[Input]]:
    while chunk := list(islice(inputs, size)):
        yield chunk
