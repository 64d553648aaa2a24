"""Pools: a file's examples, some at a time.

A pool is what is read, encoded, shuffled and cut into batches together. Small data is one pool,
encoded once and kept; large data is many, read as they are needed, so that memory grows with the
file by its index only, some bytes a record, and training begins at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader

from miniformer.config import UserError
from miniformer.data.records import Record, Records
from miniformer.data.table import Example, Table

Encode = Callable[[Sequence[Record]], list[Example]]
KEPT_BYTES = 2**25  # of records whose examples are all kept in memory: 32 MB
_POOL_BYTES = 2**20  # of records in a pool that is read as it is needed
_RECORDS_AT_ONCE = 256  # enough for a tokenizer to work in parallel


class Pools(Protocol):
    """Where batches come from. A pool may be empty."""

    @property
    def count(self) -> int | None:
        """Pools in a pass; None: not known before its end."""

    def epoch(self, random: np.random.Generator | None, first: int = 0) -> Iterator[Table]:
        """The pools of one pass, from number `first` on; without `random` in the file's order."""


class RecordPools:
    """Pools of records that can be had by index.

    Args:
        records: the file or files.
        encode: makes examples of records.
        size: records in a pool that is not kept; None: about 1 MB of them.
        num_workers: processes that read and encode what is not kept; 0: a thread of this one.
        keep: whether to encode everything now and hold it; None: up to 32 MB of records.
        progress: told the records encoded so far, and all, while everything is.

    Raises:
        UserError: there is nothing in the records to learn from.
    """

    def __init__(
        self,
        records: Records,
        encode: Encode,
        *,
        size: int | None = None,
        num_workers: int = 0,
        keep: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.records, self.encode, self.num_workers = records, encode, num_workers
        n_bytes = records.n_bytes
        self.size = size or _POOL_BYTES // max(1, n_bytes // len(records)) + 1
        self.kept: Table | None = None
        if n_bytes <= KEPT_BYTES if keep is None else keep:
            self.kept = self._all(progress)

    @property
    def count(self) -> int:
        """Pools in a pass."""
        return 1 if self.kept is not None else -(-len(self.records) // self.size)

    def __len__(self) -> int:
        return len(self.records)

    def epoch(self, random: np.random.Generator | None, first: int = 0) -> Iterator[Table]:
        """See `Pools.epoch`."""
        if self.kept is not None:
            if not first:
                yield self.kept  # what is cut from it is shuffled anyway
            return
        parts = self._order(random)[first:]
        if self.num_workers:
            found: Iterable[Table | UserError] = DataLoader(
                self,  # type: ignore[arg-type]  # a Dataset in all but name
                batch_size=None,
                sampler=parts,
                num_workers=self.num_workers,
                prefetch_factor=1,
                worker_init_fn=_leave_ctrl_c,
            )
        else:
            found = _ahead(self.__getitem__, parts)
        for table in found:
            if isinstance(table, UserError):
                raise table
            yield table

    def __getitem__(self, part: np.ndarray) -> Table | UserError:
        """Reads and encodes the records at the indices `part`.

        A mistake in the data is returned: raised in a worker process, it would lose its kind.
        """
        try:
            return _table(iter(self.records.read(part)), self.encode, numbers=part)
        except UserError as error:
            return error

    def _order(self, random: np.random.Generator | None) -> list[np.ndarray]:
        """What each pool holds."""
        count = len(self.records)
        order = np.arange(count, dtype=np.uint32 if count < 2**32 else np.int64)
        borders = range(self.size, count, self.size)
        if random is None:
            return np.split(order, borders)
        if self.records.is_plain_text:  # the pieces of a text stay together
            parts = np.split(order, borders)
            return [parts[index] for index in random.permutation(len(parts))]
        random.shuffle(order)
        return np.split(order, borders)

    def _all(self, progress: Callable[[int, int], None] | None) -> Table:
        count = len(self.records)
        told = None if progress is None else lambda done: progress(done, count)
        whole = _table(iter(self.records), self.encode, told, numbers=range(count))
        if not len(whole):
            raise UserError(f"{self.records.name}: no record has a token that could be learned")
        return whole


class StreamPools:
    """Pools of records that come one after another: a pipe, or files read front to back.

    Args:
        stream: begins a pass over the records.
        encode: makes examples of records.
        size: records in a pool: they are shuffled among themselves only.
    """

    count = None

    def __init__(
        self, stream: Callable[[], Iterator[Record]], encode: Encode, *, size: int = 1024
    ) -> None:
        self.stream, self.encode, self.size = stream, encode, size

    def epoch(self, random: np.random.Generator | None, first: int = 0) -> Iterator[Table]:
        """See `Pools.epoch`."""
        records = islice(self.stream(), first * self.size, None)
        return _ahead(lambda some: _table(iter(some), self.encode), _chunks(records, self.size))


def _ahead(make: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
    """`make` of each part, each next one while the last is in use."""
    with ThreadPoolExecutor(1) as thread:
        following = None
        for part in parts:
            now, following = following, thread.submit(make, part)
            if now is not None:
                yield now.result()
        if following is not None:
            yield following.result()


def _table(
    records: Iterator[Record],
    encode: Encode,
    progress: Callable[[int], None] | None = None,
    *,
    numbers: Sequence[int] | np.ndarray | None = None,
) -> Table:
    """The examples of records, encoded some at a time: what encoding needs is far larger.

    Args:
        records: one after another.
        encode: makes examples of them.
        progress: told the records encoded so far.
        numbers: by which the records are known; where each gives one example, it is kept as
            `record`, to say later where an example comes from.
    """
    tables, done, one_each = [], 0, numbers is not None
    for some in _chunks(records, _RECORDS_AT_ONCE):
        examples = encode(some)
        tables.append(Table.of(examples))
        done += len(some)
        one_each &= len(examples) == len(some)
        if progress is not None:
            progress(done)
    table = Table.join(tables)
    if one_each and len(table):
        table.columns["record"] = np.asarray(numbers)
    return table


def _chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    while some := list(islice(records, size)):
        yield some


def _leave_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process is the one to answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
