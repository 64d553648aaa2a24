"""Inspection of data files before training: counts, lengths, labels, duplicates, errors.

Records are read sequentially and not stored, except for the length, the label and an 8-byte hash of
the input. The rules for whole data sets are those of training (see `rules`); each record is then
checked against the schema of the fitted task.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data import rules
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.records import JSONLinesDataset, Record, RecordError
from miniformer.data.reading.schema import Schema
from miniformer.data.selection import RecordSubset
from miniformer.utils.columns import split_names

_READ_BATCH_SIZE = 256  # enough for a tokenizer to encode in parallel
_MAX_DUPLICATES_SHOWN = 3


@dataclasses.dataclass
class SplitReport:
    """Statistics and errors of a split, in one or more files.

    Args:
        name: train, val or test.
        records: all records.
        lengths: text field -> its length in each valid record, int [n].
        label_counts: label or tag -> its number.
        label_first_row: label -> first record with it.
        values: output of a regression -> its targets, float64 [n].
        input_hashes: int64 [n], equal for equal inputs.
        label_hashes: int64 [n], equal for equal labels, sets of labels or tags; [0] without them.
        rows: index of each valid record, int64 [n].
        errors: the first errors, with file:line.
        num_invalid: number of invalid records.
    """

    name: str
    records: JSONLinesDataset
    lengths: dict[str, np.ndarray] = dataclasses.field(init=False)
    label_counts: Counter[Any] = dataclasses.field(default_factory=Counter)
    label_first_row: dict[Any, int] = dataclasses.field(default_factory=dict)
    values: dict[str, np.ndarray] = dataclasses.field(init=False)
    input_hashes: np.ndarray = dataclasses.field(init=False)
    label_hashes: np.ndarray = dataclasses.field(init=False)
    rows: np.ndarray = dataclasses.field(init=False)
    errors: list[str] = dataclasses.field(default_factory=list)
    num_invalid: int = 0

    def valid_records(self) -> RecordSubset:
        """Records that satisfy the schema."""
        return RecordSubset(self.records, self.rows)

    def add_error(self, error: str, max_errors: int) -> None:
        """Counts an invalid record, and stores the error if it is among the first `max_errors`."""
        self.num_invalid += 1
        if len(self.errors) < max_errors:
            self.errors.append(error)


def inspect_dataset(
    name: str,
    source: DataFiles,
    schema: Schema,
    *,
    mapping: FieldMapping | None = None,
    length_fn: Callable[[list[Record]], dict[str, list[int]]],
    max_errors: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> SplitReport:
    """Inspects a data set in one pass.

    Args:
        name: train, val or test.
        source, schema, mapping: see `JSONLinesDataset`.
        length_fn: records -> text field -> length in each record.
        max_errors: number of errors to store; all are counted.
        progress: called with (task, records done, total records).

    Raises:
        UserError: a file is missing, unreadable or empty.
    """
    records = JSONLinesDataset(source, schema, mapping=mapping, progress=progress)
    report = SplitReport(name, records)
    lengths: dict[str, list[np.ndarray]] = {}
    values: dict[str, list[float]] = {}
    input_hashes: list[int] = []
    label_hashes: list[int] = []
    rows: list[int] = []
    for start in range(0, len(records), _READ_BATCH_SIZE):
        stop = min(start + _READ_BATCH_SIZE, len(records))
        valid = []
        for row, record in _read_or_error(records, range(start, stop)):
            if isinstance(record, UserError):
                report.add_error(str(record), max_errors)
                continue
            valid.append(record)
            rows.append(row)
            input_hashes.append(_input_hash(record, schema))
            label_hashes += _label_hash(record, schema)
            if "label" in schema:
                report.label_counts[record["label"]] += 1
                report.label_first_row.setdefault(record["label"], row)
            if "value" in schema:
                for output, value in _named_values(record["value"], records.mapping).items():
                    values.setdefault(output, []).append(float(value))
            for name in ("labels", "tags"):
                if name in schema:
                    report.label_counts.update(record[name])
        for text, batch_lengths in length_fn(valid).items() if valid else ():
            lengths.setdefault(text, []).append(np.array(batch_lengths, dtype=np.int32))
        if progress is not None:
            progress(f"checking {name}", stop, len(records))
    report.lengths = {text: np.concatenate(arrays) for text, arrays in lengths.items()}
    report.values = {output: np.array(numbers) for output, numbers in values.items()}
    report.rows = np.array(rows, dtype=np.int64)
    report.input_hashes = np.array(input_hashes, dtype=np.int64)
    report.label_hashes = np.array(label_hashes, dtype=np.int64)
    return report


def check_training_rules(task: Any, splits: Sequence[SplitReport], *, max_errors: int = 10) -> Any:
    """Adds the errors for which training would refuse the splits, the first of which it reads.

    Returns:
        The task, fitted to the valid records of the first split; None: it cannot be.
    """
    train = splits[0]
    if not len(train.rows):
        return None  # each record is an error already
    try:
        task = rules.fit_task(task, train.valid_records())
    except UserError as error:
        # With invalid records, the valid ones may lack what the whole file has.
        if isinstance(error, RecordError) or not train.num_invalid:
            train.add_error(str(error), max_errors)
        return None
    for split in splits:
        valid = split.valid_records().with_schema(task.schema)
        records = split.records.with_schema(task.schema)
        num_invalid = split.num_invalid
        for start in range(0, len(valid), _READ_BATCH_SIZE):
            rows = valid.indices[start : start + _READ_BATCH_SIZE]
            for _, record in _read_or_error(records, rows.tolist()):
                if isinstance(record, UserError):
                    split.add_error(str(record), max_errors)
        if split is not train and split.num_invalid == num_invalid and len(valid):
            try:
                rules.require_nonempty(task, valid)
            except UserError as error:
                split.add_error(str(error), max_errors)
    return task


def similar_label_warnings(splits: Sequence[SplitReport]) -> list[str]:
    """Warnings about labels that differ only by spaces or Unicode normalization."""
    locations: dict[Any, str] = {}
    for split in splits:
        for label, row in split.label_first_row.items():
            locations.setdefault(label, split.records.location(row))
    return [
        "labels that differ only by spaces or Unicode normalization: "
        + ", ".join(f"{label!a} ({locations[label]})" for label in group)
        for group in rules.group_similar_labels(locations)
    ]


def mixed_label_warnings(splits: Sequence[SplitReport]) -> list[str]:
    """Warnings about names among labels that are otherwise written as integers."""
    warnings = []
    for split in splits:
        names = [label for label in split.label_first_row if isinstance(label, str)]
        odd = [label for label in names if not label.strip().lstrip("-").isdecimal()]
        if odd and len(odd) * 2 < len(names):
            location = split.records.location(split.label_first_row[odd[0]])
            warnings.append(
                f"{len(names) - len(odd)} of {len(names)} labels are integers, and "
                f"{odd[0]!r} ({location}) is not, so that all are names; correct it if it is no "
                "class"
            )
    return warnings


def find_duplicates(reference: SplitReport, split: SplitReport) -> tuple[int, list[str]]:
    """Number of records in `split` whose input is also in `reference`, and the first of them.

    If both are the same split, the first record of each input does not count. Spaces and Unicode
    normalization are ignored.
    """
    if reference is split:
        order = np.argsort(reference.input_hashes, kind="stable")
        hashes = reference.input_hashes[order]
        positions = np.sort(order[1:][hashes[1:] == hashes[:-1]])
    else:
        positions = np.flatnonzero(np.isin(split.input_hashes, reference.input_hashes))
    lines = []
    for position in positions[:_MAX_DUPLICATES_SHOWN]:
        first = int(np.flatnonzero(reference.input_hashes == split.input_hashes[position])[0])
        location = split.records.location(int(split.rows[position]))
        lines.append(f"{location} repeats {reference.records.location(int(reference.rows[first]))}")
    return len(positions), lines


def leakage_warning(split: SplitReport, train: SplitReport) -> str | None:
    """Warning about inputs of another split that are also in the training data; None: none are."""
    number, _ = find_duplicates(train, split)
    if not number:
        return None
    return (
        f"{number:,} of {len(split.rows):,} inputs of {split.name} are also in train; the metrics "
        f"of {split.name} are too good if the model has learned them: leave them out of one"
    )


def conflicting_labels_warning(split: SplitReport) -> str | None:
    """Warning about equal inputs that have different labels or tags; None: none have.

    Spaces and Unicode normalization of the inputs are ignored.
    """
    if not len(split.label_hashes):
        return None
    order = np.argsort(split.input_hashes, kind="stable")
    inputs, labels = split.input_hashes[order], split.label_hashes[order]
    is_first = np.append(True, inputs[1:] != inputs[:-1])
    group = np.cumsum(is_first) - 1
    firsts = order[is_first][group]  # position of the first record with the same input
    differs = labels != split.label_hashes[firsts]
    if not differs.any():
        return None
    position = order[differs].min()
    first = firsts[order == position][0]
    locations = [split.records.location(int(split.rows[index])) for index in (first, position)]
    number = len(np.unique(group[differs]))
    return (
        f"{number:,} input{'s' * (number > 1)} of {split.name} occur{'s' * (number == 1)} with "
        f"different labels, such as in {locations[0]} and {locations[1]}; correct the mistakes"
    )


def _read_or_error(
    records: JSONLinesDataset, rows: Sequence[int]
) -> Iterator[tuple[int, Record | UserError]]:
    """Yields records or their errors; a batch without errors is read at once."""
    try:
        yield from zip(rows, records.read(rows), strict=True)
        return
    except UserError:
        pass
    for row in rows:
        try:
            yield row, records[row]
        except UserError as error:
            yield row, error


def _input_hash(record: Record, schema: Schema) -> int:
    """64-bit hash of a record's first field, the same in every process."""
    value = record[next(iter(schema))]
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return _hash(" ".join(unicodedata.normalize("NFC", text).split()))


def _label_hash(record: Record, schema: Schema) -> list[int]:
    """64-bit hash of a record's label, set of labels or tags; [] without them."""
    if "labels" in schema:
        return [_hash(json.dumps(sorted(map(str, record["labels"]))))]
    return [_hash(json.dumps(record[name])) for name in ("label", "tags") if name in schema]


def _named_values(value: Any, mapping: FieldMapping | None) -> dict[str, float]:
    """Numbers of a regression target by output: its key, column or number."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        return {"": value}
    columns = split_names(mapping.label_field) if mapping is not None else []
    names = columns if len(columns) == len(value) else range(1, len(value) + 1)
    return dict(zip(map(str, names), value, strict=True))


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
