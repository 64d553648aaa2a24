"""Mixture: records of several sources, of which training draws by weight.

An epoch has as many draws as the sources have records together. A source gets the share of them
that its weight is of all weights, at least one. No record of a source is drawn again before all
others of it were, over the epochs, too. Validation data, tokenizers and statistics of the training
data have each record once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.records import Record, RecordError, Records, as_records
from miniformer.data.reading.schema import Schema
from miniformer.utils.sources import has_weights, source_problems, weight_problem

_STREAM = 1_835_628_660  # of random numbers, apart from those of batches


class Mixture:
    """Sources of training data with weights, for `miniformer.train` and `MiniFormerDataModule`.

    Args:
        sources: pairs of a source and its weight, a number above 0. A source is files or records in
            memory: see `as_records`.

    Raises:
        UserError: there is no source, or a weight is invalid.
    """

    def __init__(self, sources: Sequence[tuple[Any, float]]) -> None:
        self.sources = [source for source, _ in sources]
        self.weights = [float(weight) for _, weight in _checked(sources)]

    def open_records(self, schema: Schema, mapping: FieldMapping | None, **options: Any) -> Records:
        """Records of all sources; see `as_records`."""
        parts = []
        for source in self.sources:
            parts.append(as_records(source, schema, mapping=mapping, **options))
            mapping = parts[-1].mapping  # tables have the types of columns of the first one
        return MixtureRecords(parts, self.weights)


def _checked(sources: Sequence[tuple[Any, float]]) -> Sequence[tuple[Any, float]]:
    if not sources:
        raise UserError("mixture: there is no source; at least one is needed")
    for index, (_, weight) in enumerate(sources):
        if (problem := weight_problem(weight)) is not None:
            raise UserError(f"mixture: the weight of source {index} {problem}")
    return sources


@dataclasses.dataclass(frozen=True)
class MixtureShares:
    """Sources of records and their weights.

    Args:
        names: names of the sources.
        weights: their weights.
        source_of: source of each record, int [N].
        has_plain_text: true if a source is plain text.
    """

    names: list[str]
    weights: list[float]
    source_of: np.ndarray
    has_plain_text: bool = False

    def take(self, indices: np.ndarray) -> MixtureShares:
        """The shares of some of the records."""
        return dataclasses.replace(self, source_of=self.source_of[indices])

    def draws_per_epoch(self) -> np.ndarray:
        """Draws of each source in an epoch, int64 [sources]; a source without records has none."""
        sizes = np.bincount(self.source_of, minlength=len(self.weights))
        weights = np.where(sizes > 0, self.weights, 0.0)
        exact = weights / weights.sum() * len(self.source_of)
        counts = np.maximum(exact.astype(np.int64), sizes > 0)
        while counts.sum() < len(self.source_of):  # largest remainders first
            counts[np.argmax(np.where(sizes > 0, exact - counts, -np.inf))] += 1
        while counts.sum() > len(self.source_of):  # some weights are less than a record
            counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
        return np.asarray(counts)

    def draw(self, seed: int, epoch: int) -> np.ndarray:
        """Records of an epoch in random order, int64 [draws]; see the docstring of this module."""
        draws = []
        for source, count in enumerate(self.draws_per_epoch().tolist()):
            rows = np.flatnonzero(self.source_of == source)
            first, size = epoch * count, max(1, len(rows))
            for number in range(first // size, -(-(first + count) // size)):
                order = np.random.default_rng([seed, _STREAM, source, number]).permutation(rows)
                start = number * size
                draws.append(order[max(0, first - start) : first + count - start])
        drawn = np.concatenate(draws)
        rng = np.random.default_rng([seed, _STREAM, len(self.weights), epoch])
        return np.asarray(rng.permutation(drawn))

    def setting(self) -> ResolvedSetting:
        """Content of an epoch, for the summary of a run."""
        sizes = np.bincount(self.source_of, minlength=len(self.weights))
        counts = self.draws_per_epoch()
        parts = [
            f"{count:,} of {name} ({count / max(1, size):.3g} times each of its {size:,})"
            for name, size, count in zip(self.names, sizes.tolist(), counts.tolist(), strict=True)
        ]
        value = f"{counts.sum():,} records: {', '.join(parts)}"
        return ResolvedSetting("epoch", value, "weights of train_path")

    def fingerprint(self) -> str:
        """Text that changes if the draws do."""
        sizes = np.bincount(self.source_of, minlength=len(self.weights)).tolist()
        pairs = zip(self.weights, sizes, strict=True)
        return "weights " + ", ".join(f"{weight:g} of {size:,} records" for weight, size in pairs)


class MixtureRecords(Records):
    """Records of all sources, one after the other. Each block of plain text is a document.

    Args:
        parts: the sources.
        weights: their weights.
    """

    def __init__(self, parts: Sequence[Records], weights: Sequence[float]) -> None:
        self.parts, self.weights = list(parts), list(weights)
        more = len(parts) - 1
        self.name = parts[0].name + (f" and {more} more source{'s' * (more > 1)}" if more else "")
        self.files = [file for part in parts for file in part.files]
        self.schema, self.mapping = parts[-1].schema, parts[-1].mapping
        self.is_plain_text = all(part.is_plain_text for part in parts)
        self._ends = np.cumsum([len(part) for part in parts])
        source_of = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        names, plain = [part.name for part in parts], [part.is_plain_text for part in parts]
        self.mixture = MixtureShares(names, self.weights, source_of, any(plain))

    @property
    def sizes(self) -> np.ndarray:
        return np.concatenate([part.sizes for part in self.parts])

    def set_schema(self, schema: Schema) -> None:
        self.schema, self.parts = schema, [part.with_schema(schema) for part in self.parts]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def location(self, index: int) -> str:
        part, row = self._locate(np.array([self._normalize_index(index)]))
        location: str = self.parts[part[0]].location(int(row[0]))
        return self._label(int(part[0])) + location

    def _read_rows(self, rows: Sequence[int]) -> Iterator[Record]:
        part_of, local_rows = self._locate(np.asarray(rows))
        by_part = {
            part: self._read_part(part, local_rows[part_of == part])
            for part in np.unique(part_of).tolist()
        }
        for part in part_of.tolist():
            record = next(by_part[part])
            if "continues" in record:
                record = {name: value for name, value in record.items() if name != "continues"}
            yield record

    def _read_part(self, part: int, rows: np.ndarray) -> Iterator[Record]:
        try:
            return iter(self.parts[part].read(rows))
        except RecordError:
            raise
        except UserError as error:
            raise UserError(f"{self._label(part)}{error}") from None

    def _label(self, part: int) -> str:
        """Start of messages about records that are not in files."""
        return "" if self.parts[part].files else f"source {part}, "

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources of records, and their indices there."""
        part_of = np.searchsorted(self._ends, rows, side="right")
        return part_of, rows - np.concatenate([[0], self._ends])[part_of]


def as_mixture(source: Any) -> Any:
    """A `Mixture` of a list of objects with path and weight; any other source as it is.

    Raises:
        UserError: an item is invalid.
    """
    if not has_weights(source):
        return source
    items = [{**item, "path": _plain(item["path"])} for item in source if isinstance(item, dict)]
    if problems := source_problems("train_path", items if len(items) == len(source) else source):
        raise UserError("; ".join(problems))
    return Mixture([(item["path"], item["weight"]) for item in items])


def split_mixture(records: Any, split_fn: Any) -> tuple[Records, Records]:
    """Training and validation parts of a mixture, divided source by source.

    A source that cannot be divided is in the training part.

    Args:
        records: a `MixtureRecords`.
        split_fn: divides one source, or raises a UserError.

    Raises:
        UserError: no source can be divided.
    """
    train, val, weights, problem = [], [], [], None
    for part, weight in zip(records.parts, records.weights, strict=True):
        try:
            retained, held_out = split_fn(part)
        except UserError as error:
            retained, problem = part, error
        else:
            val.append(held_out)
            weights.append(weight)
        train.append(retained)
    if not val:
        raise problem or UserError("there is no source")
    return MixtureRecords(train, records.weights), MixtureRecords(val, weights)


def _plain(path: Any) -> Any:
    """A path or paths as text."""
    if isinstance(path, list | tuple):
        return [_plain(item) for item in path]
    return os.fspath(path) if isinstance(path, os.PathLike) else path
