"""Chunks: encoded examples of a file, some at a time.

A chunk is read, encoded, shuffled and divided into batches together (a shuffle buffer). Small data
is one chunk, encoded once and held in memory. Large data is many chunks, read on demand: memory
grows with the file only by its index, a few bytes per record, and training starts at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader

from miniformer.config import InputError, UserError
from miniformer.data.batching.columnar import ColumnarStore, Example
from miniformer.data.reading.records import Record, Records

EncodeFn = Callable[[Sequence[Record]], list[Example]]
MAX_IN_MEMORY_BYTES = 2**25  # data set size up to which all examples are held in memory: 32 MB
_CHUNK_BYTES = 2**20  # bytes of the records in a chunk that is read on demand
_ENCODE_BATCH_SIZE = 256  # enough for a tokenizer to encode in parallel


class ChunkSource(Protocol):
    """Source of chunks. A chunk may be empty."""

    @property
    def num_chunks(self) -> int | None:
        """Chunks per epoch; None: not known before its end."""

    def iter_epoch(
        self, rng: np.random.Generator | None, start_chunk: int = 0, epoch: int = 0
    ) -> Iterator[ColumnarStore]:
        """Chunks of one epoch from `start_chunk`; without `rng`, in the order of the file."""


class RecordChunks:
    """Chunks of records with random access.

    Args:
        records: the file or files.
        encode_fn: makes examples of records.
        chunk_size: records per chunk that is read on demand; None: about 1 MB of records.
        num_workers: processes that read and encode on demand; 0: a thread of this process.
        keep_in_memory: whether to encode everything now and hold it; None: up to 32 MB of records.
        progress: called with (records encoded, total records) when everything is encoded.

    Raises:
        UserError: no record has a token to train on.
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
        locate = records.location
        n_bytes = records.n_bytes
        self.chunk_size = chunk_size or _CHUNK_BYTES // max(1, n_bytes // len(records)) + 1
        self.in_memory: ColumnarStore | None = None
        if n_bytes <= MAX_IN_MEMORY_BYTES if keep_in_memory is None else keep_in_memory:
            count = len(records)
            report = None if progress is None else lambda done: progress(done, count)
            self.in_memory = _encode_records(
                iter(records), encode_fn, report, record_indices=range(count), locate=locate
            )
            if not len(self.in_memory) or self._all_dropped():
                raise UserError(f"{records.name}: no record has a token to train on{self._hint()}")

    def _all_dropped(self) -> bool:
        """True if each record is longer than the context, see `Task.encode`."""
        dropped = None if self.in_memory is None else self.in_memory.columns.get("dropped")
        return dropped is not None and bool(np.all(dropped))

    def _hint(self) -> str:
        if self.in_memory is None or not self._all_dropped() or not len(self.in_memory):
            return ""
        shortest = int(self.in_memory.columns["dropped"].min())
        return f": each is longer than seq_len (the shortest has {shortest:,} tokens); raise it"

    @property
    def num_chunks(self) -> int:
        """Chunks per epoch."""
        return 1 if self.in_memory is not None else -(-len(self.records) // self.chunk_size)

    def __len__(self) -> int:
        return len(self.records)

    def iter_epoch(
        self, rng: np.random.Generator | None, start_chunk: int = 0, epoch: int = 0
    ) -> Iterator[ColumnarStore]:
        """See `ChunkSource.iter_epoch`."""
        if self.in_memory is not None:
            if not start_chunk:
                yield self.in_memory  # not shuffled: its batches are
            return
        chunk_indices = self._chunk_indices(rng, epoch)[start_chunk:]
        if self.num_workers:
            chunks: Iterable[ColumnarStore | UserError] = DataLoader(
                self,  # type: ignore[arg-type]  # has the methods of a Dataset
                batch_size=None,
                sampler=chunk_indices,
                num_workers=self.num_workers,
                prefetch_factor=1,
                worker_init_fn=_ignore_sigint,
            )
        else:
            chunks = _prefetch(self.__getitem__, chunk_indices)
        for chunk in chunks:
            if isinstance(chunk, UserError):
                raise chunk
            yield chunk

    def __getitem__(self, indices: np.ndarray) -> ColumnarStore | UserError:
        """Chunk of the records at `indices`.

        A UserError is returned, not raised: raised in a worker process, it would lose its type.
        """
        try:
            return _encode_records(
                iter(self.records.read(indices)), self.encode_fn, record_indices=indices,
                locate=self.records.location,
            )  # fmt: skip
        except UserError as error:
            return error

    def _chunk_indices(self, rng: np.random.Generator | None, epoch: int) -> list[np.ndarray]:
        """Record indices of each chunk."""
        count = len(self.records)
        order = np.arange(count, dtype=np.uint32 if count < 2**32 else np.int64)
        splits = range(self.chunk_size, count, self.chunk_size)
        if rng is None:
            return np.split(order, splits)
        if self.records.is_plain_text:  # the blocks of a text stay together
            chunks = np.split(order, splits)
            return [chunks[index] for index in rng.permutation(len(chunks))]
        rng.shuffle(order)
        return np.split(order, splits)


class StreamChunks:
    """Chunks of streamed records: a pipe, or files read sequentially.

    Args:
        iter_records: starts an iteration over the records.
        encode_fn: makes examples of records.
        chunk_size: records per chunk; they are shuffled within their chunk only.
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
        self, rng: np.random.Generator | None, start_chunk: int = 0, epoch: int = 0
    ) -> Iterator[ColumnarStore]:
        """See `ChunkSource.iter_epoch`."""
        records = islice(self.iter_records(), start_chunk * self.chunk_size, None)
        return _prefetch(
            lambda batch: _encode_records(iter(batch), self.encode_fn),
            _batched(records, self.chunk_size),
        )


def _prefetch(fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yields `fn` of each item; a thread computes the next result in the background."""
    with ThreadPoolExecutor(1) as executor:
        pending = None
        for item in items:
            current, pending = pending, executor.submit(fn, item)
            if current is not None:
                yield current.result()
        if pending is not None:
            yield pending.result()


def _encode_records(
    records: Iterator[Record],
    encode_fn: EncodeFn,
    progress: Callable[[int], None] | None = None,
    *,
    record_indices: Sequence[int] | np.ndarray | None = None,
    locate: Callable[[int], str] | None = None,
) -> ColumnarStore:
    """Encodes records batch by batch, since encoding takes far more memory than its result.

    `progress` is called with the number of encoded records. The column `record` has the index of
    each example's record, if each record gives one example or `encode_fn` numbers its examples.
    `locate` names a record by its index, in an error about it.
    """
    stores, done = [], 0
    rows: list[int] | None = None if record_indices is None else []
    for batch in _batched(records, _ENCODE_BATCH_SIZE):
        try:
            examples = encode_fn(batch)
        except InputError as error:
            if locate is None or record_indices is None:
                raise
            number = next(iter(error.problems))
            name = locate(int(record_indices[done + number]))
            raise UserError(f"{name}: the record {error.problems[number]}") from None
        numbers = _pop_record_numbers(examples, len(batch))
        rows = None if rows is None or numbers is None else rows + [done + n for n in numbers]
        stores.append(ColumnarStore.from_examples(examples))
        done += len(batch)
        if progress is not None:
            progress(done)
    result = ColumnarStore.concatenate(stores)
    if rows is not None and record_indices is not None and len(result):
        result.columns["record"] = np.asarray(record_indices)[rows]
    return result


def _pop_record_numbers(examples: list[Example], num_records: int) -> list[int] | None:
    """Removes `record`, the number of each example's record within its batch; None: not known."""
    if all("record" in example for example in examples):
        return [example.pop("record") for example in examples]
    return list(range(num_records)) if len(examples) == num_records else None


def _batched(records: Iterator[Record], batch_size: int) -> Iterator[list[Record]]:
    while batch := list(islice(records, batch_size)):
        yield batch


def _ignore_sigint(worker_id: int) -> None:
    """Ignores Ctrl-C in a worker: it reaches all processes, and the training process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
