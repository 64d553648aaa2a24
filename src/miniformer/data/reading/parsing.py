"""One line of a data file, or one piece of running text, to one checked record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.data.reading.schema import FieldCheck

Record = dict[str, Any]


class RecordError(UserError):
    """A line of a data file is wrong; the message begins with file:line."""

    def __init__(self, path: Path | str, line: int, problem: str) -> None:
        self.path, self.line, self.problem = path, line, problem
        super().__init__(f"{path}:{line}: {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordError, (self.path, self.line, self.problem)  # else pickle passes the message


class DataError(Exception):  # no error by itself: who reads the file knows where it is
    """What is wrong with a record, and how many lines into it."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


def parse_line(raw: bytes, checks: Mapping[str, FieldCheck]) -> Record:
    """The record of one line.

    Args:
        raw: the line, with its end if it has one.
        checks: the fields it must have.

    Raises:
        Flaw: it is not UTF-8 or not a JSON object, or a field is missing or wrong.
    """
    text = _decode(raw).removeprefix("\ufeff")  # of a file that was put behind another
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = "" if raw.endswith(b"\n") else "; the file may be cut off"
        raise DataError(describe_json_error(error, f"; each line is one object{cut_off}")) from None
    except ValueError:  # Python refuses to convert so many digits
        raise DataError("an integer has too many digits to be read; write it as a string") from None
    except RecursionError:
        raise DataError("lists or objects are nested too deeply to be read") from None
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {text.strip()[:40]!r}")
    for name in checks:
        # Most lines hold a name once; only the others are worth a second, slower look.
        if raw.count(f'"{name}"'.encode()) > 1 and _field_names(text).count(name) > 1:
            raise DataError(f"{name!r} is there twice; keep one")
    # UTF-8 holds no halves of surrogate pairs, so only an escape can bring one in.
    return check_record(record, checks, may_have_surrogates=b"\\ud" in raw or b"\\uD" in raw)


def describe_json_error(error: json.JSONDecodeError, hint: str = "") -> str:
    """A phrase that says what is wrong with a line that is not JSON, and where."""
    between = error.doc[len(error.doc[: error.pos].rstrip()) : error.pos]
    if error.msg == "Extra data" and "\r" in between:
        return (
            "lines end in carriage returns alone, as in files of old Macs; convert them: "
            "tr '\\r' '\\n' < FILE > NEW_FILE"
        )
    return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}{hint}"


def parse_piece(raw: bytes, checks: Mapping[str, FieldCheck], *, continues: bool) -> Record:
    """The record of a piece of running text.

    Args:
        raw: the piece.
        checks: the fields it must have.
        continues: whether it is not the first of its file.

    Raises:
        Flaw: it is not UTF-8, or a check refuses it.
    """
    record: Record = {"text": _decode(raw)}
    if continues:
        record["continues"] = True
    return check_record(record, checks, may_have_surrogates=False)


def check_record(
    record: Record, checks: Mapping[str, FieldCheck], *, may_have_surrogates: bool = True
) -> Record:
    """The same record, if every check passes.

    Args:
        record: a parsed record.
        checks: the fields it must have.
        surrogates: whether its strings may hold halves of surrogate pairs, to be looked for.

    Raises:
        Flaw: a field is missing or wrong.
    """
    for name, check in checks.items():
        if name not in record:
            has = ", ".join(map(repr, record)) or "nothing"
            raise DataError(f"the record has no {name!r} (it has {has}); add that field")
        if wrong := check(record[name]):
            raise DataError(f"{name!r} {wrong}")
        for text in _strings(record[name]) if may_have_surrogates else ():
            if (at := _find_surrogate(text)) is not None:
                raise DataError(
                    f"character {at} of {name!r} is {text[at]!a}, half of a surrogate pair and no "
                    "text by itself; remove it"
                )
    return record


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        cut_off = "; the file may be cut off" if error.reason == "unexpected end of data" else ""
        raise DataError(
            f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8{cut_off}",
            line=raw.count(b"\n", 0, error.start),
        ) from None


def _field_names(text: str) -> list[str]:
    """The names of a JSON object's own fields, each as often as it is there."""
    names: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object is finished last

    json.loads(text, object_pairs_hook=keep)
    return names


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, str))


def _find_surrogate(text: str) -> int | None:
    """Where a text that cannot be written as UTF-8 goes wrong; None: nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
