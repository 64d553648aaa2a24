"""Parsing of one line, or one block of plain text, to one checked record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from miniformer.config import UserError
from miniformer.data.reading.files import UTF16_FIX, UTF16_MARKS
from miniformer.data.reading.schema import FIELD_HINTS, Checks, DerivedCheck, RecordCheck
from miniformer.data.reading.suggestions import suggest_flags

Record = dict[str, Any]


class Mapper(Protocol):
    """Adds the fields of a schema to a row; see `RowMapper`.

    Attributes:
        columns: the columns that it reads.
    """

    columns: set[str]

    def __call__(self, row: Record, /) -> Record: ...


class RecordError(UserError):
    """Invalid line of a data file; the message begins with file:line."""

    def __init__(self, path: Path | str, line: int, problem: str) -> None:
        self.path, self.line, self.problem = path, line, problem
        super().__init__(f"{path}:{line}: {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordError, (self.path, self.line, self.problem)  # else pickle passes the message


class DataError(Exception):  # internal: the caller adds the location
    """Problem of a record, and its line relative to the record's first."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


def parse_line(raw: bytes, checks: Checks, mapper: Mapper | None = None) -> Record:
    """Parses the record of one line, with or without its line end.

    Args:
        raw: the line.
        checks: checks of the fields.
        mapper: adds fields from columns of other names; None: there are none.

    Raises:
        DataError: the line is not UTF-8 or not a JSON object, or a field is missing or invalid.
    """
    text = decode(raw).removeprefix("\ufeff")  # byte-order mark of a concatenated file
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = "" if raw.endswith(b"\n") else "; the file may be cut off"
        # The decoder looks for the next value behind the line end.
        error = json.JSONDecodeError(error.msg, text, min(error.pos, len(text.rstrip("\r\n"))))
        hint = f"{_hint_for_line(text)}{cut_off}"
        raise DataError(describe_json_error(error, hint)) from None
    except ValueError:  # Python refuses to convert so many digits
        raise DataError("an integer has too many digits to be read; write it as a string") from None
    except RecursionError:
        raise DataError("lists or objects are nested too deeply to be read") from None
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {text.strip()[:40]!r}")
    for name in checks if mapper is None else mapper.columns:
        # Most lines contain a name once; only the others need the slower check.
        if raw.count(f'"{name}"'.encode()) > 1 and _field_names(text).count(name) > 1:
            raise DataError(f"duplicate field {name!r}; keep one")
    record = record if mapper is None else mapper(record)
    # UTF-8 has no unpaired surrogates, so only an escape can add one.
    return check_record(record, checks, may_have_surrogates=b"\\ud" in raw or b"\\uD" in raw)


def describe_json_error(error: json.JSONDecodeError, hint: str = "") -> str:
    """Problem of a line that is not JSON, with its column."""
    between = error.doc[len(error.doc[: error.pos].rstrip()) : error.pos]
    if error.msg == "Extra data" and "\r" in between:
        return (
            "lines end in carriage returns alone, as in files of old Macs; convert them: "
            "tr '\\r' '\\n' < FILE > NEW_FILE"
        )
    return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}{hint}"


def _hint_for_line(text: str) -> str:
    """Fix for a line that is not JSON."""
    start = text.lstrip()[:2]
    if start.startswith("[") and not text.strip("[ \t\r\n"):
        return "; the file seems to be one JSON array: rename it to .json"
    if start == "{'":
        return "; JSON has double quotes: write records with json.dumps, not with print"
    return "; each line is one object"


def parse_text_block(raw: bytes, checks: Checks, *, continues: bool) -> Record:
    """Parses the record of a block of plain text, which `continues` another one of its file.

    Raises:
        DataError: the block is not UTF-8, or a check fails.
    """
    record: Record = {"text": check_nul(decode(raw))}
    if continues:
        record["continues"] = True
    return check_record(record, checks, may_have_surrogates=False)


def check_record(record: Record, checks: Checks, *, may_have_surrogates: bool = True) -> Record:
    """Returns the record unchanged if every check passes.

    Its strings are searched for unpaired surrogates if it `may_have_surrogates`.

    Raises:
        DataError: a field is missing or invalid.
    """
    for name, check in checks.items():
        if name not in record and isinstance(check, DerivedCheck):
            record = _with_derived_field(record, name, check)
        if name not in record:
            fields = ", ".join(map(repr, record)) or "nothing"
            flags = suggest_flags([field for field in checks if field not in record], list(record))
            hint = next((FIELD_HINTS[name, x] for x in record if (name, x) in FIELD_HINTS), None)
            if hint is None:
                hint = "add that field" + (f", or name the column: {flags}" if flags else "")
            raise DataError(f"the record has no {name!r} (it has {fields}); {hint}")
        problem = check.check(record) if isinstance(check, RecordCheck) else check(record[name])
        if problem:
            raise DataError(f"{name!r} {problem}")
        for text in _strings(record[name]) if may_have_surrogates else ():
            if (index := _find_surrogate(text)) is not None:
                raise DataError(
                    f"character {index} of {name!r} is {text[index]!a}, half of a surrogate pair; "
                    "remove it"
                )
    return record


def _with_derived_field(record: Record, name: str, check: DerivedCheck) -> Record:
    """Adds a field that other fields give, if the record has them.

    Raises:
        DataError: one of them is invalid.
    """
    value = check.derive(record)
    if value is None:
        return record
    for source, source_check in check.sources.items():
        if source in record and (problem := source_check(record[source])):
            raise DataError(f"{source!r} {problem}")
    return {**record, name: value}


def decode(raw: bytes) -> str:
    """Decodes the bytes of a record.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fix = UTF16_FIX if raw.startswith(UTF16_MARKS) else "save the file as UTF-8"
        cut_off = "; the file may be cut off" if error.reason == "unexpected end of data" else ""
        raise DataError(
            f"not UTF-8: byte 0x{raw[error.start]:02x}; {fix}{cut_off}",
            line=raw.count(b"\n", 0, error.start),
        ) from None


def decode_as(raw: bytes, encoding: str | None) -> str:
    """Decodes the bytes of a record in an encoding; None: UTF-8.

    Raises:
        DataError: a byte is not valid in the encoding.
    """
    try:
        return decode(raw) if encoding is None else raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not {encoding}: byte 0x{raw[error.start]:02x}; set another encoding",
            line=raw.count(b"\n", 0, error.start),
        ) from None
    except DataError as error:
        if error.problem.endswith(UTF16_FIX):
            raise
        problem = f"{error.problem}, or set its encoding, such as --encoding latin-1"
        raise DataError(problem, error.line) from None


def check_nul(text: str) -> str:
    """The text of a record, unchanged.

    Raises:
        DataError: it has a NUL character.
    """
    if (index := text.find("\0")) < 0:
        return text
    start = text.rfind("\n", 0, index) + 1
    raise DataError(
        f"character {index - start + 1} of the line is NUL, which no text has; the file may be "
        "damaged: write it again, or remove the character",
        text.count("\n", 0, start),
    )


def _field_names(text: str) -> list[str]:
    """Field names of a JSON object, duplicates included."""
    names: list[str] = []

    def store_names(pairs: list[tuple[str, Any]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object is parsed last

    json.loads(text, object_pairs_hook=store_names)
    return names


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            for text in (
                (item.get("text"), item.get("content")) if isinstance(item, dict) else [item]
            ):
                if isinstance(text, str):
                    yield text


def _find_surrogate(text: str) -> int | None:
    """Index of the first character that UTF-8 cannot encode, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
