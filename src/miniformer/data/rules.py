"""Rules of whole files: what one record alone cannot tell. `data check` and training share them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol, Self, TypeVar

from miniformer.config import UserError
from miniformer.data.reading.records import Record, Records


class FittableTask(Protocol):
    """What the rules ask of a task (see `miniformer.tasks.base`)."""

    def fit(self, records: Records) -> Self:
        """The task, with what it must know of the training data."""

    def is_empty(self, record: Record) -> bool:
        """Whether a record has nothing that a loss could be of."""


T = TypeVar("T", bound=FittableTask)


def fit_task(task: T, records: Records) -> T:
    """A task with what it must know of its training data.

    Args:
        task: as the user configured it.
        records: the training data.

    Raises:
        RecordError: a record does not keep to the schema, or not to that of the others.
        UserError: nothing can be learned from the data.
    """
    task = task.fit(records)
    require_nonempty(task, records)
    return task


def require_nonempty(task: FittableTask, records: Records) -> None:
    """Refuses training, validation or test data of which every record is empty.

    Raises:
        UserError: there is nothing in the records that a loss could be of.
    """
    if all(task.is_empty(record) for record in records):
        raise UserError(f"{records.name}: every record's text is empty or blank")


def group_similar_labels(labels: Iterable[Any]) -> list[list[Any]]:
    """Labels that differ only by spaces or Unicode normalization, in groups of two or more."""
    groups: dict[str, list[Any]] = {}
    for label in labels:
        if isinstance(label, str):
            spelled = " ".join(unicodedata.normalize("NFKC", label).split())
            groups.setdefault(spelled, []).append(label)
    return [group for group in groups.values() if len(group) > 1]
