"""Rules for whole data sets, beyond single records; shared by `data check` and training."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar

from miniformer.config import UserError
from miniformer.data.reading.records import Record, Records


class FittableTask(Protocol):
    """Task interface that the rules need (see `miniformer.tasks.base`)."""

    def fit(self, records: Records) -> Self:
        """Returns the task with its settings from the training data."""

    def is_empty(self, record: Record) -> bool:
        """Returns whether a record has no target for a loss."""

    def reads_text(self) -> bool:
        """Returns whether records have texts."""

    def texts(self, record: Record) -> Iterator[str]:
        """Yields the texts of a record, learned or not."""


T = TypeVar("T", bound=FittableTask)


def fit_task(task: T, records: Records) -> T:
    """Fits a task, as configured by the user, to its training data.

    Raises:
        RecordError: a record violates the schema, or differs in structure from the others.
        UserError: the data has nothing to train on.
    """
    task = task.fit(records)
    require_nonempty(task, records)
    return task


def share_files(first: Records | None, second: Records | None) -> bool:
    """Returns whether two data sets have a file in common; None is a stream."""
    files = [
        {file.resolve() for file in x.files} if x is not None else set() for x in (first, second)
    ]
    return not files[0].isdisjoint(files[1])


def require_nonempty(task: FittableTask, records: Records) -> None:
    """Refuses training, validation or test data in which every record is empty.

    Raises:
        UserError: no record has a target for a loss.
    """
    if all(task.is_empty(record) for record in records):
        raise UserError(f"{records.name}: {_empty_reason(task, records)}")


def _empty_reason(task: FittableTask, records: Records) -> str:
    texts = (text for record in records for text in task.texts(record))
    if task.reads_text() and any(text.strip() for text in texts):
        return (
            "no record has anything to learn: each text is a prompt or has learn=false; leave "
            "learn out, or set it to true, where the model is to learn"
        )
    return "every record's text is empty or blank"


def group_similar_labels(labels: Iterable[Any]) -> list[list[Any]]:
    """Labels that differ only by spaces or Unicode normalization, in groups of two or more."""
    groups: dict[str, list[Any]] = {}
    for label in labels:
        if isinstance(label, str):
            normalized = " ".join(unicodedata.normalize("NFKC", label).split())
            groups.setdefault(normalized, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def are_unequal(counts: Sequence[int]) -> bool:
    """True if the largest class has more than three times the records of the smallest."""
    return max(counts) > 3 * min(counts)
