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
from miniformer.data.batching.columnar import ColumnarStore, Example
from miniformer.data.reading.records import Record, Records

EncodeFn = Callable[[Sequence[Record]], list[Example]]
MAX_IN_MEMORY_BYTES = 2**25  # of records whose examples are all kept in memory: 32 MB
_CHUNK_BYTES = 2**20  # of records in a pool that is read as it is needed
_ENCODE_BATCH_SIZE = 256  # enough for a tokenizer to work in parallel


class ChunkSource(Protocol):
    """Where batches come from. A pool may be empty."""

    @property
    def num_chunks(self) -> int | None:
        """Pools in a pass; None: not known before its end."""

    def iter_epoch(
        self, rng: np.random.Generator | None, start_chunk: int = 0
    ) -> Iterator[ColumnarStore]:
        """The pools of one pass, from number `first` on; without `random` in the file's order."""


class RecordChunks:
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
        encode_fn: EncodeFn,
        *,
        chunk_size: int | None = None,
        num_workers: int = 0,
        keep_in_memory: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.records, self.encode_fn, self.num_workers = records, encode_fn, num_workers
        n_bytes = records.n_bytes
        self.chunk_size = chunk_size or _CHUNK_BYTES // max(1, n_bytes // len(records)) + 1
        self.in_memory: ColumnarStore | None = None
        if n_bytes <= MAX_IN_MEMORY_BYTES if keep_in_memory is None else keep_in_memory:
            self.in_memory = self._encode_all(progress)

    @property
    def num_chunks(self) -> int:
        """Pools in a pass."""
        return 1 if self.in_memory is not None else -(-len(self.records) // self.chunk_size)

    def __len__(self) -> int:
        return len(self.records)

    def iter_epoch(
        self, rng: np.random.Generator | None, start_chunk: int = 0
    ) -> Iterator[ColumnarStore]:
        """See `Pools.epoch`."""
        if self.in_memory is not None:
            if not start_chunk:
                yield self.in_memory  # what is cut from it is shuffled anyway
            return
        parts = self._chunk_indices(rng)[start_chunk:]
        if self.num_workers:
            found: Iterable[ColumnarStore | UserError] = DataLoader(
                self,  # type: ignore[arg-type]  # a Dataset in all but name
                batch_size=None,
                sampler=parts,
                num_workers=self.num_workers,
                prefetch_factor=1,
                worker_init_fn=_ignore_sigint,
            )
        else:
            found = _prefetch(self.__getitem__, parts)
        for table in found:
            if isinstance(table, UserError):
                raise table
            yield table

    def __getitem__(self, indices: np.ndarray) -> ColumnarStore | UserError:
        """Reads and encodes the records at the indices `part`.

        A mistake in the data is returned: raised in a worker process, it would lose its kind.
        """
        try:
            return _encode_records(
                iter(self.records.read(indices)), self.encode_fn, record_indices=indices
            )
        except UserError as error:
            return error

    def _chunk_indices(self, rng: np.random.Generator | None) -> list[np.ndarray]:
        """What each pool holds."""
        count = len(self.records)
        order = np.arange(count, dtype=np.uint32 if count < 2**32 else np.int64)
        borders = range(self.chunk_size, count, self.chunk_size)
        if rng is None:
            return np.split(order, borders)
        if self.records.is_plain_text:  # the pieces of a text stay together
            parts = np.split(order, borders)
            return [parts[index] for index in rng.permutation(len(parts))]
        rng.shuffle(order)
        return np.split(order, borders)

    def _encode_all(self, progress: Callable[[int, int], None] | None) -> ColumnarStore:
        count = len(self.records)
        told = None if progress is None else lambda done: progress(done, count)
        whole = _encode_records(
            iter(self.records), self.encode_fn, told, record_indices=range(count)
        )
        if not len(whole):
            raise UserError(f"{self.records.name}: no record has a token that could be learned")
        return whole


class StreamChunks:
    """Pools of records that come one after another: a pipe, or files read front to back.

    Args:
        stream: begins a pass over the records.
        encode: makes examples of records.
        size: records in a pool: they are shuffled among themselves only.
    """

    num_chunks = None

    def __init__(
        self,
        iter_records: Callable[[], Iterator[Record]],
        encode_fn: EncodeFn,
        *,
        chunk_size: int = 1024,
    ) -> None:
        self.iter_records, self.encode_fn, self.chunk_size = iter_records, encode_fn, chunk_size

    def iter_epoch(
        self, rng: np.random.Generator | None, start_chunk: int = 0
    ) -> Iterator[ColumnarStore]:
        """See `Pools.epoch`."""
        records = islice(self.iter_records(), start_chunk * self.chunk_size, None)
        return _prefetch(
            lambda some: _encode_records(iter(some), self.encode_fn),
            _batched(records, self.chunk_size),
        )


def _prefetch(fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`make` of each part, each next one while the last is in use."""
    with ThreadPoolExecutor(1) as thread:
        following = None
        for part in items:
            now, following = following, thread.submit(fn, part)
            if now is not None:
                yield now.result()
        if following is not None:
            yield following.result()


def _encode_records(
    records: Iterator[Record],
    encode_fn: EncodeFn,
    progress: Callable[[int], None] | None = None,
    *,
    record_indices: Sequence[int] | np.ndarray | None = None,
) -> ColumnarStore:
    """The examples of records, encoded some at a time: what encoding needs is far larger.

    Args:
        records: one after another.
        encode: makes examples of them.
        progress: told the records encoded so far.
        numbers: by which the records are known; where each gives one example, it is kept as
            `record`, to say later where an example comes from.
    """
    tables, done, one_each = [], 0, record_indices is not None
    for some in _batched(records, _ENCODE_BATCH_SIZE):
        examples = encode_fn(some)
        tables.append(ColumnarStore.from_examples(examples))
        done += len(some)
        one_each &= len(examples) == len(some)
        if progress is not None:
            progress(done)
    table = ColumnarStore.concatenate(tables)
    if one_each and len(table):
        table.columns["record"] = np.asarray(record_indices)
    return table


def _batched(records: Iterator[Record], batch_size: int) -> Iterator[list[Record]]:
    while some := list(islice(records, batch_size)):
        yield some


def _ignore_sigint(worker_id: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process is the one to answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
