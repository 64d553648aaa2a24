"""Inputs of `miniformer predict`: arguments, files in the formats of train, standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from miniformer.config import UserError

_INPUT_FIELDS = ("input", "source", "tokens", "text")
_READ_BATCH_SIZE = 256  # records


class Input(NamedTuple):
    """An input for a prediction.

    Args:
        location: file:line or another name, for messages; the former ends with a colon.
        value: in the format of `Pipeline.predict`.
        record: the record that has it; None: it is no part of a record.
        problem: message about an input that cannot be read; None: there is no problem.
    """

    location: str
    value: Any
    record: dict[str, Any] | None = None
    problem: str | None = None


def input_field(task: Any) -> str:
    """The field of a task's records that holds the input."""
    return next((name for name in _INPUT_FIELDS if name in task.schema), next(iter(task.schema)))


def argument_inputs(arguments: Sequence[str], task: Any) -> Iterator[Input]:
    """Inputs on the command line: texts, or JSON where inputs are not texts."""
    for argument in arguments:
        name = f"input {argument[:40]!r}"
        if _reads_texts(task):
            yield Input(name, argument)
            continue
        try:
            yield Input(name, json.loads(argument))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}: {_describe(error)}") from None


def stdin_inputs(task: Any, mapping: Any = None) -> Iterator[Input]:
    """Inputs on standard input, as they arrive; records may have the columns of `mapping`.

    If the first line is JSON, each line is a record or an input in JSON. Otherwise, for a task of
    texts, each line is a text.
    """
    stream = getattr(sys.stdin, "buffer", None)
    lines = sys.stdin if stream is None else stream
    field = input_field(task)
    mapper = None if mapping is None else mapping.row_mapper([field])
    yield from _parse_lines(lines, "standard input", task, plain=None, mapper=mapper)


def open_inputs(path: str, task: Any, mapping: Any) -> tuple[Iterator[Input], int | None]:
    """Inputs of a file, and their number, if it is known.

    Args:
        path: a file, a pattern or a folder, as for training; the lines of a .txt file are texts.
        task: the task of the model.
        mapping: columns of the fields.

    Raises:
        UserError: the file cannot be read.
    """
    from miniformer.data.reading.decompression import open_stream
    from miniformer.data.reading.files import expand_paths, parse_suffixes
    from miniformer.data.reading.records import as_records

    paths = expand_paths(path)
    if any(parse_suffixes(file)[0] == ".txt" for file in paths):
        if not _reads_texts(task):
            raise UserError(
                f"{path}: lines of text, and the model reads other inputs; use records, such as "
                "JSON lines or a table"
            )

        def read_lines() -> Iterator[Input]:
            for file in paths:
                with open_stream(file) as stream:
                    yield from _parse_lines(stream, str(file), task, plain=True)

        return read_lines(), None
    field = input_field(task)
    records = as_records(path, {field: task.schema[field]}, mapping=mapping)
    return _read_records(records, field), len(records)


def _read_records(records: Any, field: str) -> Iterator[Input]:
    """Inputs of records; an invalid record is one with a problem."""
    from miniformer.data.reading.records import RecordError

    for first in range(0, len(records), _READ_BATCH_SIZE):
        rows = range(first, min(first + _READ_BATCH_SIZE, len(records)))
        try:
            batch = records.read(rows)
        except RecordError:
            batch = [None] * len(rows)
        for row, record in zip(rows, batch, strict=True):
            problem = None
            if record is None:
                try:
                    (record,) = records.read([row])
                except RecordError as error:
                    record, problem = {}, str(error)
            yield Input(f"{records.location(row)}:", record.get(field), record, problem)


def _parse_lines(
    lines: Any, name: str, task: Any, *, plain: bool | None, mapper: Any = None
) -> Iterator[Input]:
    """Inputs of lines of text or JSON.

    Args:
        lines: bytes or texts, which end at line feeds only: JSON strings may contain U+2028.
        name: file name for messages.
        task: the task of the model.
        plain: true: lines are texts; false: they are JSON; None: it follows from the first line.
        mapper: adds the input to records that have it in other columns.
    """
    for number, raw in enumerate(lines, 1):
        location = f"{name}:{number}"
        try:
            line = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        except UnicodeDecodeError as error:
            yield Input(location, None, {}, f"{location}: {error}; save the text as UTF-8")
            continue
        line = line.removesuffix("\n").removesuffix("\r")
        line = line.removeprefix("\ufeff") if number == 1 else line
        if plain is None and line.strip():
            plain = _reads_texts(task) and not _is_json(line)
        if plain:
            yield Input(f"{location}:", line)
        elif line.strip():
            yield _parse_json_input(line, location, task, mapper)


def _parse_json_input(line: str, location: str, task: Any, mapper: Any) -> Input:
    """An input in JSON, or that of a record: the first field of the task that the record has."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Input(location, None, {}, f"{location}: {_describe(error)}")
    if not isinstance(value, dict):
        return Input(f"{location}:", value)
    from miniformer.data.reading.parsing import DataError
    from miniformer.data.reading.suggestions import FIELD_FLAGS

    names = [name for name in task.schema if name not in FIELD_FLAGS["label_field"]]
    names = list(dict.fromkeys([*_INPUT_FIELDS[:2], *names]))
    fields = [name for name in names if name in value]
    if mapper is not None and not mapper.columns.isdisjoint(value):
        try:
            mapped = mapper(value)
        except DataError as error:
            return Input(location, None, value, f"{location}: {error.problem}")
        return Input(f"{location}:", mapped[next(iter(mapper.sources))], value)
    if fields:
        return Input(f"{location}:", value[fields[0]], value)
    missing = " and no ".join(map(repr, names))
    return Input(location, None, value, f"{location}: the record has no {missing}")


def _reads_texts(task: Any) -> bool:
    """True if an input is one text."""
    kind = getattr(task, "input_kind", getattr(task, "source_kind", "text"))
    return kind in ("text", None)


def _is_json(line: str) -> bool:
    """True for an object, an array or a string in JSON; of an object, also if it is broken."""
    try:
        return isinstance(json.loads(line), dict | list | str)
    except (ValueError, RecursionError):
        return line.lstrip().startswith('{"')


def _describe(error: Exception) -> str:
    from miniformer.data.reading.parsing import describe_json_error

    if isinstance(error, json.JSONDecodeError):
        return describe_json_error(error)
    return f"not JSON: {error}"
