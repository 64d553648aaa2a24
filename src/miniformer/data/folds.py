"""Folds of cross-validation: a partition of the training records, the same in each run.

Each record is in the validation data of one fold, and in the training data of the others.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data.holdout import input_digest, record_labels
from miniformer.data.reading.records import Record, Records
from miniformer.data.selection import RecordSubset

_NUM_VALUE_BINS = 10  # of the values of a regression, which are strata like classes


def split_fold(
    records: Records, num_folds: int, fold: int, seed: int
) -> tuple[RecordSubset, RecordSubset]:
    """Training and validation records of a fold, 1 to `num_folds`.

    Raises:
        UserError: the records are plain text, or have fewer different inputs than folds.
    """
    is_val = fold_numbers(records, num_folds, seed) == fold
    return (
        RecordSubset(records, np.flatnonzero(~is_val)),
        RecordSubset(records, np.flatnonzero(is_val)),
    )


def fold_numbers(records: Records, num_folds: int, seed: int) -> np.ndarray:
    """Fold of each record, 1 to `num_folds`, int [N]; see `assign_folds`.

    Records with equal inputs are a group. Strata are classes, the rarest labels of records with
    several, and tenths of the values of a regression.

    Raises:
        UserError: the records are plain text, or have fewer different inputs than folds.
    """
    if records.is_plain_text:
        raise UserError("folds are for records, and the training data is plain text; leave it out")
    rows = list(records)
    groups = [input_digest(record) for record in rows]
    if len(set(groups)) < num_folds:
        raise UserError(
            f"folds={num_folds}, but {records.name} has {len(set(groups))} different inputs; "
            "lower folds"
        )
    return assign_folds(groups, _strata(rows), num_folds, seed) + 1


def assign_folds(
    groups: Sequence[Hashable], strata: Sequence[Hashable], num_folds: int, seed: int
) -> np.ndarray:
    """Fold of each row, from 0, int [N]: groups stay together, strata have equal shares.

    Without repeated groups, the rows of a stratum differ by at most one between folds, and so do
    all rows. Groups are dealt one by one, the largest first, each to the fold with the fewest rows
    of its stratum, then with the fewest rows.

    Args:
        groups: group of each row.
        strata: stratum of each row; a group has that of its first row.
        num_folds: number of folds.
        seed: seed of the order of equal groups.
    """
    rows_of: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    names = list(rows_of)
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    order.sort(key=lambda group: -len(rows_of[group]))
    folds = np.zeros(len(groups), dtype=np.int64)
    totals = [0] * num_folds
    sizes = Counter(strata)
    first_row = {stratum: row for row, stratum in reversed(list(enumerate(strata)))}
    for stratum in sorted(sizes, key=lambda name: (-sizes[name], first_row[name])):
        counts = [0] * num_folds
        for group in order:
            rows = rows_of[group]
            if strata[rows[0]] != stratum:
                continue
            fold = min(range(num_folds), key=lambda k: (counts[k], totals[k]))
            folds[rows] = fold
            counts[fold] += len(rows)
            totals[fold] += len(rows)
    return folds


def fit_classes(task: Any, records: Records) -> Any:
    """The task with the classes of all records, so that each fold has the same."""
    if getattr(task, "classes", ()) is not None:  # known, or a task without classes
        return task
    return dataclasses.replace(task, classes=task.fit(records).classes)


def _strata(records: Sequence[Record]) -> list[Hashable]:
    """Stratum of each record."""
    if all(isinstance(record.get("value"), int | float) for record in records):
        values = np.array([float(record["value"]) for record in records])
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        return [int(rank * _NUM_VALUE_BINS // len(values)) for rank in ranks]
    if "tags" in records[0]:
        return [""] * len(records)
    labels = [tuple(record_labels(record)) for record in records]
    counts = Counter(label for row in labels for label in row)
    return [min(row, key=lambda label: (counts[label], label), default="") for row in labels]
