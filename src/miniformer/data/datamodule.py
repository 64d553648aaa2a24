"""MiniFormerDataModule: files in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import lightning as L

from miniformer import registry
from miniformer.config import UserError
from miniformer.data import rules
from miniformer.data.batching.chunks import ChunkSource, RecordChunks, StreamChunks
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.loader import Batcher, BatchLoader
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.records import (
    Record,
    Records,
    RecordSequence,
    as_records,
)
from miniformer.data.reading.schema import Schema
from miniformer.data.reading.streaming import stream_records
from miniformer.data.tokenizers.tokenizer import Tokenizer

DataSource = DataFiles | Records | RecordSequence


class DataTask(Protocol):
    """What the data module asks of a task (see `miniformer.tasks.base`)."""

    @property
    def schema(self) -> Schema: ...
    def fit(self, records: Records) -> Self: ...
    def is_empty(self, record: Record) -> bool: ...
    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]: ...
    def batcher(
        self,
        tokenizer: Tokenizer | None,
        *,
        seq_len: int,
        batch_size: int,
        batch_tokens: int | None,
        training: bool,
    ) -> Batcher: ...


class MiniFormerDataModule(L.LightningDataModule):
    """Reads files, encodes their records and serves batches, packed or of like lengths.

    A batch is a dict of tensors for the task's `loss`, and `about`: see `Batches`. After `setup`,
    `task` knows what it must of the training data, such as its classes.

    Args:
        train_path: what to train on: files (see `JSONLinesDataset`), or records in memory.
        tokenizer: turns text into ids; None: the data holds none, but vectors.
        val_path: what to validate on; None: nothing.
        test_path: what to test on; None: nothing.
        task: a task's registered name, or a task.
        batch_size: windows in a batch; where batches are of like lengths, examples on average.
        batch_tokens: tokens in a batch at most, padding included; None: `batch_size` decides.
        seq_len: tokens in a window, or of an input and of a target at most.
        num_workers: processes that read and encode data too large to be kept in memory; 0: a thread
            of the training process.
        streaming: read the training data front to back as it comes, such as from a pipe ("-" is
            standard input): nothing is indexed, and records are shuffled among neighbours only.
        seed: decides the order of training.
        progress: told what is being read, the part done, and all of it.

    Raises:
        UserError: a file is missing or holds a bad record (the message begins with file:line).
    """

    def __init__(
        self,
        train_path: DataSource,
        *,
        tokenizer: Tokenizer | None,
        val_path: DataSource | None = None,
        test_path: DataSource | None = None,
        task: str | DataTask = "language_modeling",
        batch_size: int = 16,
        batch_tokens: int | None = None,
        seq_len: int = 256,
        num_workers: int = 0,
        streaming: bool = False,
        seed: int = 0,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.task: Any = registry.get("task", task)() if isinstance(task, str) else task
        self.train_path, self.val_path, self.test_path = train_path, val_path, test_path
        self.tokenizer, self.seq_len = tokenizer, seq_len
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.num_workers, self.streaming, self.seed = num_workers, streaming, seed
        self.progress = progress
        self.chunks: dict[str, ChunkSource] = {}
        self._resume_state: dict[str, int] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the next training begin at the `state` of a batch (see `Batches`)."""
        self._resume_state = state_dict

    def setup(self, stage: str | None = None) -> None:
        """Opens all data, and encodes what is small enough to be kept; a second call does nothing.

        Raises:
            UserError: see the class.
        """
        if self.chunks:
            return
        pools: dict[str, ChunkSource] = {}
        if self.streaming:
            pools["train"] = self._stream_chunks()
        else:
            records = as_records(self.train_path, self.task.schema)
            self.task = rules.fit_task(self.task, records)
            pools["train"] = self._record_chunks("train", records, self.num_workers)
        for name, source in (("val", self.val_path), ("test", self.test_path)):
            if source is not None:
                records = as_records(source, self.task.schema)
                rules.require_nonempty(self.task, records)
                pools[name] = self._record_chunks(name, records)
        self.chunks = pools

    def train_dataloader(self) -> BatchLoader:
        """Endless variety: each pass is shuffled anew."""
        batches = self._loader("train")
        if self._resume_state is not None:
            batches.load_state_dict(self._resume_state)
            self._resume_state = None
        return batches

    def val_dataloader(self) -> BatchLoader | list[Any]:
        return self._loader("val") if self.val_path is not None else []

    def test_dataloader(self) -> BatchLoader | list[Any]:
        return self._loader("test") if self.test_path is not None else []

    def column_total(self, split: str, column: str) -> int | None:
        """The sum of a number, or all places of an array, over the examples of train, val or test.

        None: they are not all in memory, or hold no such thing.
        """
        self.setup()
        kept = getattr(self.chunks.get(split), "in_memory", None)
        if kept is None or column not in kept.columns:
            return None
        values = kept.columns[column]
        return len(values) if column in kept.offsets else int(values.sum())

    def num_tokens(self, split: str) -> int | None:
        """Tokens, or vectors, of the examples of train, val or test; see `Task.token_arrays`.

        None: they are not all in memory.
        """
        self.setup()
        kept = getattr(self.chunks.get(split), "in_memory", None)
        if kept is None:
            return None
        names = getattr(self.task, "token_arrays", ()) or list(kept.offsets)[:1]
        counts = [self.column_total(split, column) for column in names]
        return sum(filter(None, counts)) if counts else len(kept)

    def row_tokens(self, split: str) -> float | None:
        """Tokens of a window of train, val or test, or of an example on average.

        None: they are not all in memory.
        """
        self.setup()
        kept = getattr(self.chunks.get(split), "in_memory", None)
        return None if kept is None else self._loader(split).batcher.row_tokens(kept)

    def truncation_warning(self, split: str) -> str | None:
        """A line about what of train, val or test is longer than it may be; None: nothing known."""
        self.setup()
        kept = getattr(self.chunks.get(split), "in_memory", None)
        if kept is None or "cut" not in kept.columns:
            return None
        cut = kept.columns["cut"]
        if not cut.any():
            return None
        return (
            f"warning: {int((cut > 0).sum()):,} of {len(cut):,} {split} examples were cut to "
            f"seq_len={self.seq_len} or the task's own limits; {int(cut.sum()):,} tokens are lost"
        )

    def _loader(self, split: str) -> BatchLoader:
        self.setup()
        training = split == "train"
        cutter = self.task.batcher(
            self.tokenizer,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            training=training,
        )
        attached = self.trainer
        return BatchLoader(
            self.chunks[split],
            cutter,
            seed=self.seed if training else None,
            rank=0 if attached is None else attached.global_rank,
            world_size=1 if attached is None else attached.world_size,
            token_tensors=getattr(self.task, "token_tensors", None),
        )

    def _record_chunks(self, split: str, records: Records, num_workers: int = 0) -> RecordChunks:
        progress = None if self.progress is None else partial(self.progress, f"encoding {split}")
        return RecordChunks(
            records.with_schema(self.task.schema),
            self._encode,
            num_workers=num_workers,
            progress=progress,
        )

    def _stream_chunks(self) -> StreamChunks:
        source = self.train_path
        if not isinstance(source, (str, Path, list)):
            raise UserError("streaming reads files or '-' (standard input); name one as train_path")
        schema = self.task.schema

        def records() -> Iterator[Record]:
            return (record for _, record in stream_records(source, schema))

        return StreamChunks(records, self._encode)

    def _encode(self, records: Sequence[Record]) -> list[Example]:
        examples: list[Example] = self.task.encode(records, self.tokenizer, self.seq_len)
        return examples
