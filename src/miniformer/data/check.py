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
from miniformer.data.fields import Schema
from miniformer.data.files import Source
from miniformer.data.records import JSONLinesDataset, Record, RecordError
from miniformer.data.selection import SomeRecords

_AT_ONCE = 256  # records measured at once, so that a tokenizer can work in parallel
_SHOWN = 3  # pairs of duplicates that are named


@dataclasses.dataclass
class Split:
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
    labels: Counter[Any]
    first: dict[Any, int]
    values: np.ndarray
    keys: np.ndarray
    rows: np.ndarray
    faults: list[str]
    broken: int

    def good(self) -> SomeRecords:
        """The records that keep to the schema."""
        return SomeRecords(self.records, self.rows)

    def add(self, fault: str, most: int) -> None:
        """Counts a fault, and remembers it among the first `most`."""
        self.broken += 1
        if len(self.faults) < most:
            self.faults.append(fault)


def look_over(
    name: str,
    source: Source,
    schema: Schema,
    *,
    measure: Callable[[list[Record]], dict[str, list[int]]],
    most_faults: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> Split:
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
    for first in range(0, len(records), _AT_ONCE):
        good = []
        for row, found in _each(records, range(first, min(first + _AT_ONCE, len(records)))):
            if isinstance(found, UserError):
                broken += 1
                if len(faults) < most_faults:
                    faults.append(str(found))
                continue
            good.append(found)
            rows.append(row)
            keys.append(_key(found, schema))
            if "label" in schema:
                labels[found["label"]] += 1
                first_of.setdefault(found["label"], row)
            if "value" in schema:
                values.append(float(found["value"]))
        for text, found_lengths in measure(good).items() if good else ():
            lengths.setdefault(text, []).append(np.array(found_lengths, dtype=np.int32))
        if progress is not None:
            progress(f"checking {name}", min(first + _AT_ONCE, len(records)), len(records))
    return Split(
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


def hold_to_training(task: Any, splits: Sequence[Split], *, most_faults: int = 10) -> None:
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
        task = rules.fitted(task, train.good())
    except UserError as error:
        # Where records have faults, those without them need not have all that the file has.
        if isinstance(error, RecordError) or not train.broken:
            train.add(str(error), most_faults)
        return
    for split in splits:
        good = split.good().with_schema(task.schema)
        before = split.broken
        for first in range(0, len(good), _AT_ONCE):
            rows = good.rows[first : first + _AT_ONCE]
            for _, found in _each(good.records, rows.tolist()):
                if isinstance(found, UserError):
                    split.add(str(found), most_faults)
        if split is not train and split.broken == before and len(good):
            try:
                rules.refuse_empty(task, good)
            except UserError as error:
                split.add(str(error), most_faults)


def alike_labels(splits: Sequence[Split]) -> list[str]:
    """Lines about labels that differ only by spaces or Unicode normalization."""
    places: dict[Any, str] = {}
    for split in splits:
        for label, row in split.first.items():
            places.setdefault(label, split.records.where(row))
    return [
        "labels that differ only by spaces or Unicode normalization: "
        + ", ".join(f"{label!a} ({places[label]})" for label in group)
        for group in rules.alike(places)
    ]


def duplicates(one: Split, other: Split) -> tuple[int, list[str]]:
    """Records of `other` whose input is in `one`, too, or was in it before: how many, and some.

    Spaces and the way in which Unicode spells a letter make no difference.
    """
    if one is other:
        order = np.argsort(one.keys, kind="stable")
        again = order[1:][one.keys[order][1:] == one.keys[order][:-1]]
        places = np.sort(again)
    else:
        places = np.flatnonzero(np.isin(other.keys, one.keys))
    shown = []
    for place in places[:_SHOWN]:
        first = int(np.flatnonzero(one.keys == other.keys[place])[0])
        where = other.records.where(int(other.rows[place]))
        shown.append(f"{where} repeats {one.records.where(int(one.rows[first]))}")
    return len(places), shown


def _each(
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


def _key(record: Record, schema: Schema) -> int:
    """A number for a record's first field; a hash of 64 bits, the same in every process."""
    value = record[next(iter(schema))]
    spelled = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    spelled = " ".join(unicodedata.normalize("NFC", spelled).split())
    digest = hashlib.blake2b(spelled.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
