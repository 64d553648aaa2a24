"""Runs a model over the records of an evaluation, in the batches of training's own test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniformer.data import rules
from miniformer.data.batching.chunks import RecordChunks
from miniformer.data.batching.columnar import ColumnarStore, Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import Batcher
from miniformer.data.batching.record_fields import FieldBatcher
from miniformer.data.reading.records import Record, Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.inference import eval_mode
from miniformer.tasks.base import BatchStats, Task
from miniformer.tasks.common.record_results import RecordResults


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """Sizes of batches and inputs; those of training give the same metrics to the last digit.

    Args:
        seq_len: tokens per window, and maximum tokens of an input and of a target; None: the
            model's max_seq_len.
        batch_size: windows or mean examples per batch.
        batch_tokens: maximum tokens per batch, padding included; None: by `batch_size`.
    """

    seq_len: int | None = None
    batch_size: int = 16
    batch_tokens: int | None = None


def run_batches(
    model: Any,
    task: Task,
    tokenizer: Tokenizer | None,
    records: Records,
    settings: BatchSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, float], RecordResults | None]:
    """Metrics of the task, and the results of each record.

    Args:
        model: the model, on any device; its mode is restored.
        task: the task, fitted to its training data.
        tokenizer: None: the task reads no text.
        records: the data, with the task's schema.
        settings: sizes of the batches.
        progress: called with (records done, all records).

    Returns:
        The metrics of `Task.compute_metrics`, the same numbers as of a test in training with the
        same settings; and the results, None if the task has none.

    Raises:
        UserError: no record has a label.
        RecordError: a record violates the schema.
    """
    task.move_helpers(next(model.parameters()).device)
    stats: list[BatchStats] = []
    done = 0
    with torch.inference_mode(), eval_mode(model):
        for batch in labeled_batches(model, task, tokenizer, records, settings):
            indices = batch["records"]
            batch_stats = task.record_step(model, batch)
            fields = {"fields": batch["fields"]} if "fields" in batch else {}
            stats.append({**batch_stats, "records": indices, **fields})
            done = done + len(indices) if indices.dim() == 1 else int(indices.max()) + 1
            if progress is not None:
                progress(min(done, len(records)), len(records))
    has_records = all(len(batch_stats["records"]) for batch_stats in stats)
    results = task.record_results(stats, records, tokenizer) if has_records else None
    return task.compute_metrics(stats, tokenizer), results


def labeled_batches(
    model: Any,
    task: Task,
    tokenizer: Tokenizer | None,
    records: Records,
    settings: BatchSettings,
) -> Iterator[Batch]:
    """Batches in the order of validation, on the device of the model; see `run_batches`.

    They have `records`; see `Task.record_step`.

    Raises:
        UserError: no record has a label.
        RecordError: a record violates the schema.
    """
    rules.require_nonempty(task, records)
    seq_len = settings.seq_len or model.config.max_seq_len

    def encode(batch: Sequence[Record]) -> list[Example]:
        return task.encode(batch, tokenizer, seq_len)

    batcher = task.batcher(
        tokenizer,
        seq_len=seq_len,
        batch_size=settings.batch_size,
        batch_tokens=settings.batch_tokens,
        training=False,
    )
    if task.extra_fields:
        batcher = FieldBatcher(batcher, records, task.extra_fields)
    device = next(model.parameters()).device
    for chunk in RecordChunks(records, encode).iter_epoch(None):
        for plan in batcher.plan_batches(chunk, None) if len(chunk) else ():
            batch = batcher.collate(chunk, plan, None)
            yield _to_device({**batch, "records": _record_indices(chunk, batcher, plan)}, device)


def _record_indices(chunk: ColumnarStore, batcher: Batcher, plan: Any) -> Tensor:
    """Record of each row, int64 [B], or of each label, int64 [B, T]; empty if not known."""
    if "record" not in chunk.columns:
        return torch.empty(0, dtype=torch.int64)
    find_examples = getattr(batcher, "label_examples", batcher.example_indices)
    return torch.from_numpy(chunk.columns["record"][find_examples(chunk, plan)].astype(np.int64))


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device) if isinstance(value, Tensor) and name != "records" else value
        for name, value in batch.items()
    }
