"""Loss of exported graphs on records, with the encoding and the definition of the task."""

from __future__ import annotations

from typing import Any

import torch

from miniformer.config import UserError
from miniformer.data.batching.chunks import RecordChunks
from miniformer.data.reading.records import as_records
from miniformer.exporters.onnx.session import OnnxModel, through_graphs
from miniformer.exporters.source import Source

_BATCH_SIZE = 16


def check_data(source: Source) -> None:
    """Checks that a model has a loss on records.

    Raises:
        UserError: it has no task.
    """
    if source.task is None or (source.tokenizer is None and source.task.reads_text()):
        raise UserError(
            "data: a loss on records needs a model directory with task and tokenizer, and this "
            "one has only a model; leave data out"
        )


@torch.inference_mode()
def data_loss(source: Source, graphs: OnnxModel, path: str) -> float:
    """Mean loss of the records of a file, in the unit of the task.

    Raises:
        UserError: the file cannot be read, or no record has a label.
        RecordError: a record violates the task's schema.
    """
    assert source.task is not None
    task: Any = through_graphs(source.task)
    records = as_records(path, task.schema)
    seq_len = source.config.max_seq_len
    chunks = RecordChunks(records, lambda rows: task.encode(rows, source.tokenizer, seq_len))
    batcher = task.batcher(
        source.tokenizer, seq_len=seq_len, batch_size=_BATCH_SIZE, batch_tokens=None, training=False
    )
    total, count = 0.0, 0.0
    for chunk in chunks.iter_epoch(None):
        for plan in batcher.plan_batches(chunk, None) if len(chunk) else ():
            loss, weight, *_ = task.loss(graphs, batcher.collate(chunk, plan, None))
            total, count = total + float(loss), count + float(weight)
    if not count:
        raise UserError(f"{path}: no record has a label to compute a loss of")
    return total / count
