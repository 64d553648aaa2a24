"""Reading JSON-lines and plain-text files, one checked record at a time.

A `.jsonl` file holds one JSON object a line; a `.txt` file is one record, {"text": the whole file}.
Lines are indexed once by byte offset and read when asked for, so a `.jsonl` file is never held in
memory; a `.txt` file is, being one record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from miniformer.config import UserError

Record = dict[str, Any]
TEXT_SCHEMA: Mapping[str, type] = {"text": str}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RecordError(UserError):
    """A line of a data file is wrong; the message begins with file:line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


class JSONLinesDataset:
    """The records of one file, by index; blank lines do not count. Fits a torch `DataLoader`.

    Args:
        path: a `.jsonl` or `.txt` file.
        schema: the fields each record must have, and their types.

    Raises:
        UserError: the file is missing, unreadable, empty, or of another kind.
    """

    def __init__(self, path: str | Path, schema: Mapping[str, type] = TEXT_SCHEMA) -> None:
        self.path = Path(path)
        self.schema = schema
        if self.path.suffix not in (".jsonl", ".txt"):
            raise UserError(
                f"{path}: unknown kind of file {self.path.suffix!r}; use .jsonl or .txt"
            )
        if self.path.suffix == ".txt" and "text" not in schema:
            raise UserError(f"{path}: a .txt file holds no {' and '.join(schema)}; use .jsonl")
        try:
            self._starts, self._lines = self._index()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        if len(self) == 0:
            raise UserError(f"{path}: the file is empty; it needs at least one record")

    @property
    def is_plain_text(self) -> bool:
        """Whether the file is one running text rather than separate records."""
        return self.path.suffix == ".txt"

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`.

        Raises:
            IndexError: there is no such record.
            RecordError: its line is not JSON or does not keep to the schema.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            raw = file.read(int(self._starts[index + 1] - self._starts[index]))
        return self._parse(raw, int(self._lines[index]))

    def __iter__(self) -> Iterator[Record]:
        """All records in order, reading the file once."""
        with self.path.open("rb") as file:
            for index, line in enumerate(self._lines):
                file.seek(int(self._starts[index]))
                raw = file.read(int(self._starts[index + 1] - self._starts[index]))
                yield self._parse(raw, int(line))

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Byte offset of each record, then of the end; line number of each record."""
        with self.path.open("rb") as file:
            mark = len(_BYTE_ORDER_MARK) if file.read(3) == _BYTE_ORDER_MARK else 0
            if self.is_plain_text:
                size = file.seek(0, 2)
                return np.array([mark, size]), np.ones(int(size > mark), dtype=np.int64)
            file.seek(mark)
            starts, lines, position = [], [], mark
            for number, raw in enumerate(file, 1):
                if not raw.isspace():
                    starts.append(position)
                    lines.append(number)
                position += len(raw)
        # A record's bytes may run on into blank lines after it, which JSON does not mind.
        return np.array([*starts, position], dtype=np.int64), np.array(lines, dtype=np.int64)

    def _parse(self, raw: bytes, line: int) -> Record:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line += raw.count(b"\n", 0, error.start)
            raise RecordError(
                self.path, line, f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8"
            ) from None
        if self.is_plain_text:
            return {"text": text}
        try:
            record = json.loads(text)
        except ValueError as error:
            raise RecordError(
                self.path, line, f"not JSON: {error}; each line is one object"
            ) from None
        if not isinstance(record, dict):
            raise RecordError(
                self.path, line, f"expected a JSON object, found {text.strip()[:40]!r}"
            )
        for name, kind in self.schema.items():
            if name not in record:
                has = ", ".join(map(repr, record)) or "nothing"
                raise RecordError(
                    self.path, line, f"the record has no {name!r} (it has {has}); add that field"
                )
            if not isinstance(record[name], kind):
                found = type(record[name]).__name__
                raise RecordError(
                    self.path, line, f"{name!r} must be a {kind.__name__}, not a {found}"
                )
            if kind is str and (at := _surrogate(record[name])) is not None:
                raise RecordError(
                    self.path,
                    line,
                    f"character {at} of {name!r} is {record[name][at]!a}, half of a "
                    "surrogate pair and no text by itself; remove it",
                )
        return record


def _surrogate(text: str) -> int | None:
    """Where a text that cannot be written as UTF-8 goes wrong; None: nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
