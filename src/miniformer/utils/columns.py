"""Settings that name columns of tables: lists of names, delimiters, encodings."""

from __future__ import annotations

from typing import Any


def split_names(value: list[str] | str | None) -> list[str]:
    """Column names of a setting: a list, or one string with commas between names."""
    if value is None:
        return []
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)


def parse_delimiter(value: str) -> str | None:
    """The character of a delimiter setting; `\\t` and `tab` are a tab. None: invalid."""
    character = {"\\t": "\t", "tab": "\t"}.get(value, value)
    valid = len(character) == 1 and character.isascii() and character not in '"\r\n'
    return character if valid else None


def encoding_problem(name: str) -> str | None:
    """Problem of an encoding: unknown, or delimiters and line ends are not single ASCII bytes."""
    special = b',;|\t\r\n"'
    try:
        is_ascii = bytes(range(128)).decode(name) == bytes(range(128)).decode("ascii")
        last_chars = {
            bytes([first, last]).decode(name, "replace")[-1:]
            for first in range(128, 256)
            for last in special
        }
        if is_ascii and last_chars <= set(special.decode()):
            return None
    except (LookupError, ValueError):
        pass
    return (
        f"encoding must be utf-8, or a one-byte encoding such as latin-1 or cp1252, not {name!r}; "
        "convert the file: iconv -f ENCODING -t utf-8 < FILE > NEW_FILE"
    )


def column_problems(settings: Any) -> list[str]:
    """Problems of the fields of a `FieldSettings`."""
    problems = [
        f"{name} has an empty name; leave it out, or name columns"
        for name in ("input_field", "label_field", "text_field", "columns")
        if (value := getattr(settings, name)) is not None and not all(split_names(value) or [""])
    ]
    names = split_names(settings.columns)
    problems += [
        f"columns: {name!r} appears twice; names must differ"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    delimiter = settings.delimiter
    if delimiter is not None and parse_delimiter(delimiter) is None:
        problems.append(
            f"delimiter must be one ASCII character, such as ';' or '\\t', not {delimiter!r}"
        )
    if settings.encoding is not None and (problem := encoding_problem(settings.encoding)):
        problems.append(problem)
    return problems
