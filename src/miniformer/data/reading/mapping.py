"""FieldMapping: the columns of files that hold the fields of records.

`input_field`, `label_field` and `text_field` name columns; a field without one is the column of its
own name. All other columns stay in the record under their names.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from miniformer.config import UserError
from miniformer.config.train_settings import FieldSettings
from miniformer.data.reading.parsing import DataError, Record
from miniformer.data.reading.suggestions import FIELD_FLAGS, suggest_flags
from miniformer.utils.columns import split_names

_LIST_FIELDS = ("input", "source", "text", "value", "labels")  # may have several columns
_PATTERN_CHARS = "*?"
# Names of the columns of a field, and for patterns the columns that each one matches.
FieldColumns = tuple[list[str], list[list[str]] | None]


@dataclasses.dataclass(frozen=True)
class FieldMapping(FieldSettings):
    """Columns of the fields of records, and how files are read; stored with a model.

    Args:
        input_field, label_field, text_field, input_separator: see `FieldSettings`.
        columns, delimiter, quoting, encoding: see `FieldSettings`.
        kinds: column of a text table -> integer, number, list or text. Known from the training
            data, so that later files are read alike; see `cells`.
        label_separator: separates labels in one cell; known from the training data, too.
        optional: read a field from the column of its own name in files that lack the columns.
    """

    kinds: dict[str, str] | None = None
    label_separator: str | None = None
    optional: bool = False

    @classmethod
    def from_settings(cls, settings: Any) -> FieldMapping:
        """The mapping of a `DataSettings`, or of a config that has its fields."""
        names = (field.name for field in dataclasses.fields(cls) if hasattr(settings, field.name))
        return cls(**{name: getattr(settings, name) for name in names})

    def sources(self, fields: Iterable[str]) -> dict[str, list[str]]:
        """Columns or patterns of each field of a schema; a field without a setting has its own.

        Raises:
            UserError: a field has too many columns.
        """
        fields, result = list(fields), {}
        for flag, candidates in FIELD_FLAGS.items():
            names = split_names(getattr(self, flag))
            field = next((name for name in fields if name in candidates), None)
            if not names or field is None:
                continue
            if len(names) > 1 and field not in _LIST_FIELDS:
                raise UserError(
                    f"{flag}: {field!r} is one column, not {len(names)} ({', '.join(names)})"
                )
            if len(names) > 1 and field in ("source", "text") and self.input_separator is None:
                raise UserError(
                    f"{flag}: {len(names)} columns for {field!r} need an input_separator, such as "
                    "--input_separator ' '"
                )
            result[field] = names
        for name in fields:
            result.setdefault(name, [name])
        return result

    def check_fields(self, fields: Collection[str]) -> None:
        """Checks that each given setting is of use for the fields of a task.

        Raises:
            UserError: a setting has no effect.
        """
        needed = " and ".join(map(repr, fields)) or "no field"
        fields = set(fields)
        for flag, candidates in FIELD_FLAGS.items():
            if getattr(self, flag) is not None and not fields & {*candidates}:
                usable = next((key for key, known in FIELD_FLAGS.items() if fields & {*known}), "")
                hint = f"set {usable}, or leave it out" if usable else "leave it out"
                raise UserError(f"{flag} has no effect: the task reads {needed}; {hint}")

    def row_mapper(self, fields: Iterable[str]) -> RowMapper | None:
        """Mapper of records with typed values; None: all fields have columns of their own names."""
        sources = self.sources(fields)
        if all(columns == [name] for name, columns in sources.items()):
            return None
        return RowMapper(sources, self)


class RowMapper:
    """Adds the fields of a schema to rows of typed values.

    Args:
        sources: columns or patterns of each field.
        mapping: the other settings.
    """

    def __init__(self, sources: Mapping[str, Sequence[str]], mapping: FieldMapping) -> None:
        self.sources = {name: list(columns) for name, columns in sources.items()}
        self.separator, self.optional = mapping.input_separator, mapping.optional
        self.columns = {name for columns in sources.values() for name in columns}
        # Columns of the fields in rows with the columns of the last one.
        self._resolved: tuple[tuple[str, ...], dict[str, FieldColumns]] = ((), {})

    def __call__(self, row: Record) -> Record:
        """The row with its fields.

        Raises:
            DataError: a column is missing, or its values do not fit together.
        """
        result = dict(row)
        for field, (names, groups) in self.resolve(row).items():
            result[field] = combine(field, row, names, self.separator, groups)
        return result

    def resolve(self, row: Record) -> dict[str, FieldColumns]:
        """Columns of each field in a row.

        Raises:
            DataError: a column is missing.
        """
        known = tuple(row)
        last, resolved = self._resolved  # another thread may replace it
        if known != last or not resolved:
            sources = {
                field: available_columns(field, columns, row) if self.optional else columns
                for field, columns in self.sources.items()
            }
            missing, absent = lacking_fields(sources, known)
            if missing:
                flags = suggest_columns(missing, sources, known)
                raise DataError(_missing_column(absent[0], known, flags))
            resolved = {field: resolve_columns(columns, row) for field, columns in sources.items()}
            self._resolved = (known, resolved)
        return resolved


def available_columns(field: str, columns: Sequence[str], known: Iterable[str]) -> list[str]:
    """The columns of a field, or the column of its own name if only that is known."""
    known = list(known)
    missing = any(name not in known for name in expand_columns(columns, known))
    return [field] if missing and field in known else list(columns)


def lacking_fields(
    sources: Mapping[str, Sequence[str]], columns: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Fields whose columns a table lacks, and these columns."""
    fields, absent = [], []
    for field, names in sources.items():
        if lacking := [name for name in expand_columns(names, columns) if name not in columns]:
            fields.append(field)
            absent += lacking
    return fields, absent


def check_columns(
    columns: Sequence[str], mapping: FieldMapping, fields: Iterable[str]
) -> str | None:
    """Problem of a table of typed columns that lacks some; None: it has all.

    Args:
        columns: the columns of the table.
        mapping: the columns of the fields.
        fields: the fields, or a schema, whose derived fields may be in other columns.
    """
    sources = mapping.sources(fields)
    if isinstance(fields, Mapping):
        for name, check in fields.items():
            if sources[name] == [name] and name not in columns:
                derives = getattr(check, "derive", None)
                if derives is not None and derives(dict.fromkeys(columns)) is not None:
                    del sources[name]
    if mapping.optional:
        sources = {
            field: available_columns(field, names, columns) for field, names in sources.items()
        }
    missing, absent = lacking_fields(sources, columns)
    if not missing:
        return None
    flags = suggest_columns(missing, sources, columns)
    hint = f"name the columns: {flags}" if flags else "name the columns by their flags"
    noun = f"column{'s' * (len(absent) > 1)} {' and '.join(map(repr, absent))}"
    return f"there is no {noun}; the columns are {_list_names(columns)}; {hint}"


def resolve_columns(columns: Sequence[str], row: Record) -> FieldColumns:
    """Names of the columns of a field, and for patterns the columns that each one matches.

    Raises:
        DataError: the row has no such column.
    """
    names = expand_columns(columns, row)
    if missing := [name for name in names if name not in row]:
        raise DataError(_missing_column(missing[0], list(row)))
    groups = [expand_columns([name], row) for name in columns] if names != columns else None
    return names, groups


def is_pattern(name: str) -> bool:
    """True for a name with `*` or `?`."""
    return any(char in name for char in _PATTERN_CHARS)


def expand_columns(columns: Sequence[str], known: Iterable[str]) -> list[str]:
    """Column names in place of patterns, in the order of the file; other names stay."""
    known, result = list(known), list[str]()
    for name in columns:
        matches = (
            [column for column in known if fnmatchcase(column, name)]
            if is_pattern(name) and name not in known
            else []
        )
        result += matches or [name]
    return result


def suggest_columns(
    missing: Sequence[str], sources: Mapping[str, Sequence[str]], columns: Sequence[str]
) -> str:
    """Flags for missing fields; columns of the other fields are left out. See `suggest_flags`."""
    used = {name for field, names in sources.items() if field not in missing for name in names}
    return suggest_flags(missing, [name for name in columns if name not in used])


def _missing_column(name: str, known: Sequence[str], flags: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"name the columns: {flags}" if flags else "name one of these"
    hint = f"did you mean {close[0]!r}?" if close else hint
    what = "column that matches" if is_pattern(name) else "column"
    return f"the record has no {what} {name!r} (it has {_list_names(known)}); {hint}"


def combine(
    field: str,
    row: Record,
    names: Sequence[str],
    separator: str | None,
    groups: Sequence[Sequence[str]] | None = None,
) -> Any:
    """Value of a field from its columns.

    Args:
        field: name of the field.
        row: values by column.
        names: the columns.
        separator: `input_separator`.
        groups: for patterns of numbers: the columns of each feature, one for each time step.

    Raises:
        DataError: the values do not fit together.
    """
    values = [row[name] for name in names]
    if len(values) == 1 and groups is None:
        value = values[0]
        is_series = field == "input" and isinstance(value, list) and bool(value)
        return [[x] for x in value] if is_series and all(map(_is_number, value)) else value
    if field == "value":
        return values
    if field == "labels":
        return [name for name, value in zip(names, values, strict=True) if _is_one(name, value)]
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise DataError(f"column {name!r} is empty; each column of {field!r} needs a value")
    if field == "input" and all(map(_is_number, values)):
        if groups is None:
            return [values]
        lengths = {len(group) for group in groups}
        if len(lengths) > 1:
            raise DataError(
                f"the patterns of {field!r} match {' and '.join(map(str, sorted(lengths)))} "
                "columns; each feature of a series needs as many"
            )
        return [[row[name] for name in step] for step in zip(*groups, strict=True)]
    texts = [value if isinstance(value, str) else str(value) for value in values]
    if separator is not None:
        return separator.join(texts)
    if len(texts) != 2:
        raise DataError(
            f"{len(texts)} columns of texts for {field!r}; join them with --input_separator ' ', "
            "or name one or two"
        )
    return texts


def _is_one(name: str, value: Any) -> bool:
    if value not in (0, 1) or isinstance(value, str):
        raise DataError(
            f"column {name!r} is {value!r}; several columns of labels hold 1 (the record has the "
            "label of that name) or 0"
        )
    return bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_names(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(map(repr, names[:limit])) or "nothing"
    return shown + f" and {len(names) - limit} more" * (len(names) > limit)
