"""Typed values of the cells of text tables, by the kind of their column and the meaning of a field.

A column whose cells are all integers holds integers; one whose cells are all numbers holds numbers;
one whose cells are all lists, such as `[1, 2]`, holds lists; any other holds text. Empty cells do
not count. Texts (`text`, `source`, `target`, `input`) stay as they are in the file.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from miniformer.data.reading.mapping import (
    FieldMapping,
    RowMapper,
    combine,
    expand_columns,
)
from miniformer.data.reading.parsing import DataError, Record

SEPARATORS = ("|", ";", ",")  # of labels in one cell; the first that occurs in the column
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,300}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{2,4}")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,(?![0-9]{3}$)[0-9]+")  # three digits: of thousands
_TEXT_FIELDS = ("text", "source", "target")
_NUMERIC = ("integer", "number")


def infer_kinds(
    rows: Iterable[Record], sources: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], str | None]:
    """Kind of each column, and the separator of labels.

    Args:
        rows: cells by column.
        sources: columns of each field. One of several columns of an input holds numbers if most of
            its cells do, so that the others are errors.

    Returns:
        Column -> integer, number, list or text; the separator, if the schema has `labels`.
    """
    counts: dict[str, list[int]] = {}  # of cells that are not empty, integers, numbers, lists
    texts: set[str] = set()
    several: set[str] | None = None  # columns of an input with several
    labels = sources.get("labels", ())
    separators: dict[str, bool] = {}  # separator -> true if all labels are integers
    for row in rows:
        if several is None:
            names = expand_columns(sources.get("input", ()), row)
            several = set(names) if len(names) > 1 else set()
        for name, cell in row.items():
            cell = cell.strip()
            if name in texts or not cell:
                continue
            count = counts.setdefault(name, [0, 0, 0, 0])
            count[0] += 1
            if _INTEGER.fullmatch(cell):
                count[1] += 1
                count[2] += 1
            elif _NUMBER.fullmatch(cell):
                count[2] += 1
            elif cell[0] == "[" and cell[-1] == "]":
                count[3] += 1
            elif name not in several:
                texts.add(name)
        if len(labels) == 1 and labels[0] in row:
            _count_separators(row[labels[0]], separators)
    kinds = {
        name: _kind(*count, majority=name in (several or ())) for name, count in counts.items()
    }
    kinds |= dict.fromkeys(texts, "text")
    separator = next((item for item in SEPARATORS if item in separators), None)
    if separator is not None and kinds.get(labels[0]) != "list":
        kinds[labels[0]] = "integer" if separators[separator] else "text"
    return kinds, separator


def _count_separators(cell: str, separators: dict[str, bool]) -> None:
    for item in SEPARATORS:
        parts = [part.strip() for part in cell.split(item)]
        integers = all(_INTEGER.fullmatch(part) for part in parts if part)
        if len(parts) > 1:
            separators[item] = separators.get(item, True) and integers
        elif item in separators and not integers:
            separators[item] = False


def _kind(total: int, integers: int, numbers: int, lists: int, *, majority: bool) -> str:
    if lists == total:
        return "list"
    if integers == total:
        return "integer"
    if numbers == total or (majority and 2 * numbers > total):
        return "number"
    return "text"


class CellMapper(RowMapper):
    """Converts the cells of a row, and adds the fields of a schema.

    Args:
        sources: columns of each field.
        mapping: has the kind of each column (one without a kind holds text) and the separators.
    """

    def __init__(self, sources: Mapping[str, Sequence[str]], mapping: FieldMapping) -> None:
        super().__init__(sources, mapping)
        self.label_separator = mapping.label_separator
        self.kinds = {name: kind for name, kind in (mapping.kinds or {}).items() if kind != "text"}

    def __call__(self, cells: Record) -> Record:
        """The record of a row of cells.

        Raises:
            DataError: a column is missing, or a cell has no value of its field.
        """
        result = dict(cells)
        for name, kind in self.kinds.items():
            if name in cells:
                result[name] = _column_value(kind, cells[name])
        for field, (names, groups) in self.resolve(cells).items():
            if groups is None and len(names) == 1 and self._is_text(field, names[0]):
                result[field] = cells[names[0]]
            else:
                values = self._field_values(field, names, cells)
                result[field] = combine(field, values, names, self.separator, groups)
        return result

    def _is_text(self, field: str, name: str) -> bool:
        """True if a field of one column has its cells as they are."""
        kind = self.kinds.get(name, "text")
        texts = {"label": kind != "integer", "input": kind != "list"}
        return field in _TEXT_FIELDS or texts.get(field, False)

    def _field_values(self, field: str, names: Sequence[str], cells: Record) -> Record:
        """Values of the columns of a field, in the types that the field needs."""
        kinds = {self.kinds.get(name, "text") for name in names}
        if field in _TEXT_FIELDS or (field == "input" and not kinds <= {*_NUMERIC, "list"}):
            return {name: cells[name] for name in names}
        return {name: self._field_value(field, name, cells[name], len(names)) for name in names}

    def _field_value(self, field: str, name: str, cell: str, num_columns: int) -> Any:
        text, kind = cell.strip(), self.kinds.get(name, "text")
        try:
            if field in ("tokens", "tags"):
                return parse_list(text) if kind == "list" else text.split()
            if field == "labels" and num_columns == 1:
                return self._labels(text, kind)
            if field == "label" and not text:
                return cell
            if not text:
                raise DataError(
                    f"{_describe(field, name)} is an empty cell; fill it in or remove the row"
                )
            if kind == "list" or (field == "value" and text[0] == "["):
                return parse_list(text)
            if kind == "text" and field not in ("value", "labels"):
                return cell
            return parse_number(text)
        except ValueError:
            shown = repr(text[:40])
            expected = "a list" if kind == "list" else "a number"
            if field == "label":
                expected = "an integer, as the labels of the training data are"
            fix = _fix_number(text) if expected == "a number" else "fix the cell"
            problem = f"{_describe(field, name)} is {shown}, not {expected}; {fix}"
            raise DataError(problem) from None

    def _labels(self, text: str, kind: str) -> list[Any]:
        if kind == "list":
            return parse_list(text) if text else []
        parts = text.split(self.label_separator) if self.label_separator else [text]
        labels = [part.strip() for part in parts if part.strip()]
        return [int(label) for label in labels] if kind == "integer" else labels


def _column_value(kind: str, cell: str) -> Any:
    """Value of a column that is no field; a cell that does not fit its kind stays text."""
    text = cell.strip()
    if not text:
        return None
    try:
        return parse_list(text) if kind == "list" else parse_number(text)
    except ValueError:
        return cell


def _fix_number(text: str) -> str:
    """Fix for a cell that holds no number, by what it seems to hold."""
    if _DATE.match(text):
        return "write the date as a number, such as of days"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"write a decimal point: {text.replace(',', '.')}"
    if any(char.isdecimal() for char in text) and not any(char.isalpha() for char in text):
        return "leave out signs of units and of thousands"
    return "fix the cell"


def _describe(field: str, name: str) -> str:
    return repr(field) if name == field else f"{field!r} (column {name!r})"


def parse_number(text: str) -> int | float:
    """An integer or a finite number in decimal notation.

    Raises:
        ValueError: the text is no such number.
    """
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


def parse_list(text: str) -> list[Any]:
    """A list in JSON, or as Python prints it. Numbers alone are a series: each is a vector.

    Raises:
        ValueError: the text is no list.
    """
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, MemoryError, RecursionError, TypeError):
            raise ValueError(text) from None
    except RecursionError:
        raise ValueError(text) from None
    if not isinstance(value, list):
        raise ValueError(text)
    return value
