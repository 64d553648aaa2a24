"""A data file looked over before it is trained on: counts, lengths, labels, duplicates, faults.

Records are read front to back, and none is kept: of each, its length, its label and 8 bytes that
tell its input from others are. The rules of whole files are those of training (see `rules`); each
record is then held to what the training data says that all must be.
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
from miniformer.data.reading.records import JSONLinesDataset, Record, RecordError
from miniformer.data.reading.schema import Schema
from miniformer.data.selection import RecordSubset

_READ_BATCH_SIZE = 256  # records measured at once, so that a tokenizer can work in parallel
_MAX_DUPLICATES_SHOWN = 3  # pairs of duplicates that are named


@dataclasses.dataclass
class SplitReport:
    """What there is to know of one file or several.

    Args:
        name: train, val or test.
        records: all of them.
        lengths: of each good record, for each of its texts, int [n]: name -> lengths.
        labels: how often each label occurs.
        first: the record at which each label is first.
        values: those of regression.
        keys: int64 [n], equal where inputs are.
        rows: the record's index of each key.
        faults: what is wrong, with file:line.
        broken: records that are faulty.
    """

    name: str
    records: JSONLinesDataset
    lengths: dict[str, np.ndarray]
    label_counts: Counter[Any]
    label_first_row: dict[Any, int]
    values: np.ndarray
    input_hashes: np.ndarray
    rows: np.ndarray
    errors: list[str]
    num_invalid: int

    def valid_records(self) -> RecordSubset:
        """The records that keep to the schema."""
        return RecordSubset(self.records, self.rows)

    def add_error(self, error: str, max_errors: int) -> None:
        """Counts a fault, and remembers it among the first `most`."""
        self.num_invalid += 1
        if len(self.errors) < max_errors:
            self.errors.append(error)


def inspect_dataset(
    name: str,
    source: DataFiles,
    schema: Schema,
    *,
    length_fn: Callable[[list[Record]], dict[str, list[int]]],
    max_errors: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> SplitReport:
    """Reads a file once.

    Args:
        name: train, val or test.
        source: as `JSONLinesDataset` takes it.
        schema: the fields each record must have, and their checks.
        measure: lengths of some records' texts, by name.
        most_faults: faults that are remembered; all are counted.
        progress: told what is read, the records done, and all.

    Raises:
        UserError: a file is missing, unreadable or empty.
    """
    records = JSONLinesDataset(source, schema, progress=progress)
    lengths: dict[str, list[np.ndarray]] = {}
    labels: Counter[Any] = Counter()
    first_of: dict[Any, int] = {}
    values: list[float] = []
    keys: list[int] = []
    rows: list[int] = []
    faults: list[str] = []
    broken = 0
    for first in range(0, len(records), _READ_BATCH_SIZE):
        good = []
        for row, found in _read_or_error(
            records, range(first, min(first + _READ_BATCH_SIZE, len(records)))
        ):
            if isinstance(found, UserError):
                broken += 1
                if len(faults) < max_errors:
                    faults.append(str(found))
                continue
            good.append(found)
            rows.append(row)
            keys.append(_input_hash(found, schema))
            if "label" in schema:
                labels[found["label"]] += 1
                first_of.setdefault(found["label"], row)
            if "value" in schema:
                values.append(float(found["value"]))
        for text, found_lengths in length_fn(good).items() if good else ():
            lengths.setdefault(text, []).append(np.array(found_lengths, dtype=np.int32))
        if progress is not None:
            progress(f"checking {name}", min(first + _READ_BATCH_SIZE, len(records)), len(records))
    return SplitReport(
        name,
        records,
        {text: np.concatenate(parts) for text, parts in lengths.items()},
        labels,
        first_of,
        np.array(values),
        np.array(keys, dtype=np.int64),
        np.array(rows, dtype=np.int64),
        faults,
        broken,
    )


def check_training_rules(task: Any, splits: Sequence[SplitReport], *, max_errors: int = 10) -> None:
    """Adds faults that only whole files show: those for which training would refuse them.

    Args:
        task: as the user configured it.
        splits: the training data, then others.
        most_faults: faults that are remembered of each.
    """
    train = splits[0]
    if not len(train.rows):
        return  # each record is a fault already
    try:
        task = rules.fit_task(task, train.valid_records())
    except UserError as error:
        # Where records have faults, those without them need not have all that the file has.
        if isinstance(error, RecordError) or not train.num_invalid:
            train.add_error(str(error), max_errors)
        return
    for split in splits:
        good = split.valid_records().with_schema(task.schema)
        before = split.num_invalid
        for first in range(0, len(good), _READ_BATCH_SIZE):
            rows = good.indices[first : first + _READ_BATCH_SIZE]
            for _, found in _read_or_error(good.records, rows.tolist()):
                if isinstance(found, UserError):
                    split.add_error(str(found), max_errors)
        if split is not train and split.num_invalid == before and len(good):
            try:
                rules.require_nonempty(task, good)
            except UserError as error:
                split.add_error(str(error), max_errors)


def similar_label_warnings(splits: Sequence[SplitReport]) -> list[str]:
    """Lines about labels that differ only by spaces or Unicode normalization."""
    places: dict[Any, str] = {}
    for split in splits:
        for label, row in split.label_first_row.items():
            places.setdefault(label, split.records.location(row))
    return [
        "labels that differ only by spaces or Unicode normalization: "
        + ", ".join(f"{label!a} ({places[label]})" for label in group)
        for group in rules.group_similar_labels(places)
    ]


def find_duplicates(reference: SplitReport, split: SplitReport) -> tuple[int, list[str]]:
    """Records of `other` whose input is in `one`, too, or was in it before: how many, and some.

    Spaces and the way in which Unicode spells a letter make no difference.
    """
    if reference is split:
        order = np.argsort(reference.input_hashes, kind="stable")
        again = order[1:][reference.input_hashes[order][1:] == reference.input_hashes[order][:-1]]
        places = np.sort(again)
    else:
        places = np.flatnonzero(np.isin(split.input_hashes, reference.input_hashes))
    shown = []
    for place in places[:_MAX_DUPLICATES_SHOWN]:
        first = int(np.flatnonzero(reference.input_hashes == split.input_hashes[place])[0])
        where = split.records.location(int(split.rows[place]))
        shown.append(f"{where} repeats {reference.records.location(int(reference.rows[first]))}")
    return len(places), shown


def _read_or_error(
    records: JSONLinesDataset, rows: Sequence[int]
) -> Iterator[tuple[int, Record | UserError]]:
    """Records, or what is wrong with them; most are read together."""
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
    """A number for a record's first field; a hash of 64 bits, the same in every process."""
    value = record[next(iter(schema))]
    spelled = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    spelled = " ".join(unicodedata.normalize("NFC", spelled).split())
    digest = hashlib.blake2b(spelled.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
