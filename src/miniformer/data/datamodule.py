"""MiniFormerDataModule: from files to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np

from miniformer import registry
from miniformer.config import UserError
from miniformer.data import rules
from miniformer.data.batching.chunks import ChunkSource, RecordChunks, StreamChunks
from miniformer.data.batching.columnar import ColumnarStore, Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import Batcher, BatchLoader
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.mixture import Mixture, as_mixture
from miniformer.data.reading.records import Record, Records, RecordSequence, as_records
from miniformer.data.reading.schema import Schema
from miniformer.data.reading.streaming import stream_records
from miniformer.data.tokenizers.tokenizer import Tokenizer

DataSource = DataFiles | Records | RecordSequence | Mixture


class DataTask(rules.FittableTask, Protocol):
    """Task interface that the data module needs (see `miniformer.tasks.base`)."""

    @property
    def schema(self) -> Schema: ...
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
    """Reads files, encodes their records and serves packed or length-bucketed batches.

    A batch is a dict of tensors for the task's `loss`, and `about`: see `BatchLoader`. `setup` fits
    `task` to the training data, such as its classes.

    Args:
        train_path: training data: files (see `JSONLinesDataset`), records in memory, or several
            sources with weights (see `Mixture`).
        tokenizer: the tokenizer; None: the data has vectors instead of text.
        val_path: validation data, or None.
        test_path: test data, or None.
        mapping: columns of the fields in all files; None: they have the names of the fields.
        task: registered name of a task, or a task.
        batch_size: windows per batch if packed, otherwise the mean number of examples.
        batch_tokens: maximum number of tokens per batch, padding included; None: by `batch_size`.
        seq_len: tokens per window, or maximum length of an input and of a target.
        num_workers: processes that read and encode data too large to be held in memory; 0: a thread
            of the training process.
        streaming: reads the training data sequentially, such as from a pipe ("-" is standard
            input): without an index, and shuffled only within chunks.
        seed: seed of the training order.
        batch_order: order of the training batches: a `BatchOrder`, or a registered name with its
            options; None: random batches of the task's batcher.
        progress: called with (task, done, total) during reading.

    Raises:
        UserError: a file is missing or has an invalid record (the message begins with file:line).
    """

    def __init__(
        self,
        train_path: DataSource,
        *,
        tokenizer: Tokenizer | None,
        val_path: DataSource | None = None,
        test_path: DataSource | None = None,
        mapping: FieldMapping | None = None,
        task: str | DataTask = "language_modeling",
        batch_size: int = 16,
        batch_tokens: int | None = None,
        seq_len: int = 256,
        num_workers: int = 0,
        streaming: bool = False,
        seed: int = 0,
        batch_order: Any = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.task: Any = registry.get("task", task)() if isinstance(task, str) else task
        self.train_path = as_mixture(train_path) if isinstance(train_path, list) else train_path
        self.val_path, self.test_path = val_path, test_path
        self.mapping = mapping
        self.tokenizer, self.seq_len = tokenizer, seq_len
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.num_workers, self.streaming, self.seed = num_workers, streaming, seed
        self.progress = progress
        self.order = None if batch_order is None else _build_order(batch_order)
        self._make_loader: Any = BatchLoader  # of the training data
        self.chunks: dict[str, ChunkSource] = {}
        self._resume_state: dict[str, int] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Starts the next training at the `state` of a batch (see `BatchLoader`)."""
        self._resume_state = state_dict

    def setup(self, stage: str | None = None) -> None:
        """Opens all data, and encodes small data; a second call does nothing."""
        if self.chunks:
            return
        chunks: dict[str, ChunkSource] = {}
        if self.streaming:
            chunks["train"] = self._stream_chunks()
        else:
            records = as_records(self.train_path, self.task.schema, mapping=self.mapping)
            self.mapping = records.mapping
            self.task = rules.fit_task(self.task, records)
            chunks["train"] = self._record_chunks("train", records, self.num_workers)
        for split, source in (("val", self.val_path), ("test", self.test_path)):
            if source is not None:
                records = as_records(source, self.task.schema, mapping=self.mapping)
                rules.require_nonempty(self.task, records)
                chunks[split] = self._record_chunks(split, records)
        self.chunks = chunks

    def train_dataloader(self) -> BatchLoader:
        """Loader of the training data, shuffled differently in each epoch."""
        loader = self._loader("train", training=True)
        if self._resume_state is not None:
            loader.load_state_dict(self._resume_state)
            self._resume_state = None
        return loader

    def val_dataloader(self) -> BatchLoader | list[Any]:
        return self._loader("val") if self.val_path is not None else []

    def test_dataloader(self) -> BatchLoader | list[Any]:
        return self._loader("test") if self.test_path is not None else []

    def ordered_batches(self, split: str) -> Iterable[Batch]:
        """Batches of a split, without shuffling."""
        return self._loader(split, training=False)

    def in_memory_examples(self, split: str) -> ColumnarStore | None:
        """Encoded examples of a split; None: not all of them are in memory."""
        self.setup()
        return getattr(self.chunks.get(split), "in_memory", None)

    def column_total(self, split: str, column: str) -> int | None:
        """Sum of a column of numbers, or total length of a column of arrays, over a split.

        None: the examples are not all in memory, or lack the column.
        """
        store = self.in_memory_examples(split)
        if store is None or column not in store.columns:
            return None
        values = store.columns[column]
        return len(values) if column in store.offsets else int(values.sum())

    def num_tokens(self, split: str) -> int | None:
        """Number of tokens or vectors in a split (see `Task.token_arrays`).

        None: the examples are not all in memory.
        """
        store = self.in_memory_examples(split)
        if store is None:
            return None
        columns = getattr(self.task, "token_arrays", ()) or list(store.offsets)[:1]
        counts = [self.column_total(split, column) for column in columns]
        return sum(filter(None, counts)) if counts else len(store)

    def row_tokens(self, split: str) -> float | None:
        """Tokens per window, or mean tokens per example, of a split.

        None: the examples are not all in memory.
        """
        store = self.in_memory_examples(split)
        if store is None:
            return None
        return self._loader(split, training=split == "train").batcher.row_tokens(store)

    def packing_summary(self, split: str) -> Iterator[str]:
        """Yields a line about the windows of a split; none if it is not in memory."""
        batcher: Any = self._loader(split, training=split == "train").batcher
        if (store := self.in_memory_examples(split)) is not None:
            yield f"{split} windows: {batcher.summary(store)}"

    def truncation_warning(self, split: str) -> str | None:
        """Warning about truncated or dropped examples of a split; None: none are known."""
        store = self.in_memory_examples(split)
        if store is not None and (dropped := store.columns.get("dropped", np.zeros(1))).any():
            return (
                f"warning: {int((dropped > 0).sum()):,} of {len(dropped):,} {split} records are "
                f"conversations longer than seq_len={self.seq_len} (the longest has "
                f"{int(dropped.max()):,} tokens) and are left out"
            )
        if store is None or "cut" not in store.columns:
            return None
        cut = store.columns["cut"]
        if not cut.any():
            return None
        return (
            f"warning: {int((cut > 0).sum()):,} of {len(cut):,} {split} examples were cut to "
            f"seq_len={self.seq_len} or the task's own limits; {int(cut.sum()):,} tokens are lost"
        )

    def _loader(self, split: str, *, training: bool = False) -> BatchLoader:
        self.setup()
        batcher = self.task.batcher(
            self.tokenizer,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            training=training,
        )
        if not training and getattr(self.task, "extra_fields", None):
            batcher = self._field_batcher(split, batcher)
        trainer, make_loader = self.trainer, self._make_loader if training else BatchLoader
        loader: BatchLoader = make_loader(
            self.chunks[split],
            batcher,
            seed=self.seed if training else None,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            token_tensors=getattr(self.task, "token_tensors", None),
        )
        return loader

    def _field_batcher(self, split: str, batcher: Batcher) -> Batcher:
        """Batcher with the fields of records that the metrics of the task need."""
        from miniformer.data.batching.record_fields import FieldBatcher

        records = getattr(self.chunks[split], "records", None)
        return (
            batcher if records is None else FieldBatcher(batcher, records, self.task.extra_fields)
        )

    def _record_chunks(self, split: str, records: Records, num_workers: int = 0) -> RecordChunks:
        records = records.with_schema(self.task.schema)
        progress = None if self.progress is None else partial(self.progress, f"encoding {split}")
        options: dict[str, Any] = {"num_workers": num_workers, "progress": progress}
        if split == "train" and (self.order is not None or records.mixture is not None):
            return self._planned_chunks(records, options)
        return RecordChunks(records, self._encode, **options)

    def _planned_chunks(self, records: Records, options: dict[str, Any]) -> RecordChunks:
        """Chunks of training data with a batch order, or of a mixture."""
        self._make_loader = self._ordered_loader
        if self.order is not None and self.order.whole_epochs:
            options["keep_in_memory"] = True
        if records.mixture is None:
            return RecordChunks(records, self._encode, **options)
        from miniformer.data.batching.mixture_chunks import MixtureChunks

        return MixtureChunks(records, self._encode, seed=self.seed, **options)

    def _ordered_loader(self, *args: Any, **options: Any) -> BatchLoader:
        """Loader whose epochs may differ; it has its own copy of the order."""
        from miniformer.data.batching.order import OrderedBatchLoader

        order = None if self.order is None else _build_order(self.order)
        return OrderedBatchLoader(*args, order=order, **options)

    def _stream_chunks(self) -> StreamChunks:
        source = self.train_path
        if not isinstance(source, (str, Path, list)):
            raise UserError(
                "streaming reads files or '-' (standard input), without weights; name one as "
                "train_path"
            )
        self._make_loader = BatchLoader if self.order is None else self._ordered_loader
        if self.order is not None and self.order.whole_epochs:
            name = type(self.order).__name__
            raise UserError(f"batch_order: {name} needs whole epochs; leave streaming out")
        schema, mapping = self.task.schema, self.mapping

        def iter_records() -> Iterator[Record]:
            return (record for _, record in stream_records(source, schema, mapping))

        return StreamChunks(iter_records, self._encode)

    def _encode(self, records: Sequence[Record]) -> list[Example]:
        examples: list[Example] = self.task.encode(records, self.tokenizer, self.seq_len)
        return examples


def _build_order(setting: Any) -> Any:
    """A `BatchOrder`; see `build_order`."""
    from miniformer.data.batching.order import build_order

    return build_order(setting)
