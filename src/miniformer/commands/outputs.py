"""Predictions as JSON lines or as a table, with fields of their records."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from miniformer.commands.models import round_numbers
from miniformer.config import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NOT_WRITTEN = (".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods", ".gz", ".zst", ".zip")
_VALUE = "prediction"  # name of a prediction that has no fields


def format_prediction(prediction: Any, scores: str, top_k: int | None) -> Any:
    """A prediction in plain types, with numbers of 6 significant digits.

    Args:
        prediction: of `Pipeline.predict`.
        scores: probabilities: none; top: that of the predicted class, or of a prediction of several
            labels those of all, unless `top_k` lists the first ones; all: those of all classes.
        top_k: number of the most probable classes to list as `top`; None: no list.

    Raises:
        UserError: classes are to be listed, and the prediction has none.
    """
    has_classes = isinstance(prediction, dict) and isinstance(prediction.get("scores"), dict)
    if not has_classes and (top_k is not None or scores == "all"):
        flag = "scores=all" if top_k is None else "top_k"
        raise UserError(f"{flag} lists classes, and these predictions have none; leave it out")
    if isinstance(prediction, dict):
        result = dict(prediction)
        all_scores = result.get("scores")
        if isinstance(all_scores, dict):
            if top_k is not None:
                ranked = sorted(all_scores.items(), key=lambda item: -item[1])[:top_k]
                result["top"] = [{"label": name, "score": score} for name, score in ranked]
            if scores != "all" and ("score" in result or top_k is not None):
                del result["scores"]
        if scores == "none":
            result = {name: value for name, value in result.items() if "score" not in name}
        prediction = result
    return round_numbers(prediction)


class Writer:
    """Writes one line for each input.

    Args:
        file: text file, opened with newline="".
        suffix: .csv or .tsv for a table, otherwise JSON lines.
        keep: fields of the record that are written, too; all: each of them.
    """

    def __init__(self, file: IO[str], suffix: str, keep: list[str] | str) -> None:
        self.file, self.keep = file, keep
        delimiter = _DELIMITERS.get(suffix)
        self._table = None if delimiter is None else csv.writer(file, delimiter=delimiter)
        self._columns: list[str] | None = None  # of a table; known from the first prediction
        self._waiting: list[dict[str, Any]] = []  # rows without a prediction before it

    def write(self, record: dict[str, Any] | None, prediction: Any) -> None:
        """Writes a line.

        Args:
            record: the record; None: the input is no part of a record.
            prediction: of `format_prediction`; None: there is none.
        """
        if self._table is None:
            row = self._row(record, prediction) if self.keep else prediction
            self.file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            return
        row = _flat(self._row(record, prediction))
        if self._columns is None and prediction is None:
            self._waiting.append(row)
            return
        self._write_waiting(list(row))
        self._write_cells(row)

    def close(self) -> None:
        """Writes rows of a table that wait for a prediction."""
        if self._table is not None and self._waiting:
            self._write_waiting(list(self._waiting[0]))
        self.file.flush()

    def _row(self, record: dict[str, Any] | None, prediction: Any) -> dict[str, Any]:
        """Kept fields and the prediction; a name that both have is predicted_... of the latter."""
        fields = record or {}
        names = list(fields) if self.keep == "all" else self.keep
        row = {name: fields.get(name) for name in names if name != "continues"}
        values = prediction if isinstance(prediction, dict) else {_VALUE: prediction}
        for name, value in values.items():
            row[f"predicted_{name}" if name in row else name] = value
        return row

    def _write_waiting(self, columns: list[str]) -> None:
        if self._columns is None and self._table is not None:
            self._columns = columns
            self._table.writerow(columns)
            for row in self._waiting:
                self._write_cells(row)
            self._waiting = []

    def _write_cells(self, row: dict[str, Any]) -> None:
        assert self._table is not None
        assert self._columns is not None
        self._table.writerow([_cell(row.get(name)) for name in self._columns])


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose probabilities of classes are columns of their own."""
    result: dict[str, Any] = {}
    for name, value in row.items():
        if name == "scores" and isinstance(value, dict):
            result |= {f"score_{label}": score for label, score in value.items()}
        else:
            result[name] = value
    return result


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def check_output(flag: str, path: Path, inputs: Sequence[str]) -> None:
    """Checks a file that is to be written, before anything is computed.

    Args:
        flag: the flag that names it.
        path: the file.
        inputs: files and patterns of files that the command reads; "-" is standard input.

    Raises:
        UserError: the path is a folder, or one of the inputs.
    """
    from miniformer.data.reading.files import expand_paths

    if not path.name or path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; name a file in it")
    files = [file for name in inputs if name != "-" for file in expand_paths(name)]
    if any(file.exists() and path.exists() and file.samefile(path) for file in files):
        raise UserError(f"{flag}: {path} is read and would be overwritten; name another file")


def check_prediction_file(output: str, inputs: Sequence[str]) -> None:
    """Checks the file of predictions; see `check_output`.

    Raises:
        UserError: see `check_output`, or the name ends as files that are not written.
    """
    path = Path(output)
    check_output("output", path, inputs)
    if path.suffix.lower() in _NOT_WRITTEN:
        raise UserError(
            f"output: {path}: {path.suffix} is not written; name a .csv, .tsv or .jsonl file"
        )


@contextlib.contextmanager
def open_writer(output: str | None, keep: list[str] | str) -> Iterator[Writer]:
    """Yields a writer; a file appears when the block ends without an error.

    Args:
        output: the file; None or "-": standard output.
        keep: see `Writer`.

    Raises:
        UserError: the file cannot be written.
    """
    if output in (None, "-"):
        writer = Writer(sys.stdout, "", keep)
        yield writer
        writer.close()
        return
    from miniformer.utils.atomic import atomic_path

    path = Path(str(output))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(path) as tmp_path,
            tmp_path.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = Writer(file, path.suffix.lower(), keep)
            yield writer
            writer.close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
