"""MiniFormerDataModule: files in, batches out."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.fields import Schema
from miniformer.data.packing import PackedTokens, WindowSampler
from miniformer.data.records import JSONLinesDataset, Record
from miniformer.data.tokenizer import Tokenizer

_RECORDS_AT_ONCE = (
    256  # enough for the tokenizer to work in parallel, little enough to hold in memory
)


class TextTask(Protocol):
    """What the data module asks of a task (see `miniformer.tasks`)."""

    schema: Schema

    def encode(self, records: Sequence[Record], tokenizer: Tokenizer) -> list[list[int]]: ...


class MiniFormerDataModule(L.LightningDataModule):
    """Encodes text files and serves packed batches of `input_ids`, `labels` and `segment_ids`.

    Args:
        train_path: `.jsonl` or `.txt` file to train on, or its records.
        tokenizer: turns its text into ids.
        val_path: file to validate on, or its records; None: no validation.
        task: a task's registered name, or a task.
        batch_size: windows in a batch, B.
        seq_len: tokens in a window, T.
        num_workers: processes that cut windows; 0: the training process itself, which is fastest
            here.
        seed: decides the order of the training windows.

    Raises:
        UserError: a file is missing or holds a bad record (the message begins with file:line).
    """

    def __init__(
        self,
        train_path: str | Path | JSONLinesDataset,
        *,
        tokenizer: Tokenizer,
        val_path: str | Path | JSONLinesDataset | None = None,
        task: str | TextTask = "language_modeling",
        batch_size: int = 16,
        seq_len: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task: TextTask = registry.get("task", task)() if isinstance(task, str) else task
        self.train_path, self.val_path, self.tokenizer = train_path, val_path, tokenizer
        self.batch_size, self.seq_len = batch_size, seq_len
        self.num_workers, self.seed = num_workers, seed
        self.train_data: PackedTokens | None = None
        self.val_data: PackedTokens | None = None

    def setup(self, stage: str | None = None) -> None:
        """Reads and encodes both files; a second call does nothing."""
        if self.train_data is None:
            self.train_data = self._pack(self.train_path, endless=True)
            if self.val_path is not None:
                self.val_data = self._pack(self.val_path, endless=False)

    def train_dataloader(self) -> DataLoader[Any]:
        self.setup()
        assert self.train_data is not None
        return self._loader(self.train_data, WindowSampler(self.train_data, seed=self.seed))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        self.setup()
        if self.val_data is None:
            return []
        return self._loader(self.val_data, range(0, len(self.val_data.tokens), self.seq_len))

    def _loader(self, data: PackedTokens, starts: Any) -> DataLoader[Any]:
        return DataLoader(
            data,  # type: ignore[arg-type]  # a Dataset in all but name
            batch_size=self.batch_size,
            sampler=starts,
            collate_fn=data.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_ctrl_c,
        )

    def _pack(self, source: str | Path | JSONLinesDataset, *, endless: bool) -> PackedTokens:
        records = source
        if not isinstance(records, JSONLinesDataset):
            records = JSONLinesDataset(records, self.task.schema)
        kind = np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32
        parts, n_bytes = [], 0
        for some in _chunks(iter(records), _RECORDS_AT_ONCE):
            n_bytes += sum(len(record["text"].encode()) for record in some)
            parts += [np.array(ids, dtype=kind) for ids in self.task.encode(some, self.tokenizer)]
        if n_bytes == 0:
            raise UserError(f"{records.name}: every record's text is empty")
        return PackedTokens(
            np.concatenate(parts),
            seq_len=self.seq_len,
            boundary_id=self.tokenizer.boundary_id,
            n_bytes=n_bytes,
            endless=endless,
        )


def _leave_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process is the one to answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    while some := list(islice(records, size)):
        yield some
