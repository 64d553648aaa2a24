"""Sources and targets: batches of them, and their loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from miniformer.data.buckets import Batch, pad
from miniformer.data.packing import IGNORED
from miniformer.data.table import Example
from miniformer.tasks.task import token_loss


def collate_pairs(examples: list[Example], *, start_id: int, end_id: int | None = None) -> Batch:
    """A batch: `source`, `target`, `labels`, int64 [B, S or T], maybe `source_mask`.

    With `end_id`, which ends a target, also that and the targets' texts, to write and compare.
    """
    source, mask = pad([example["source"] for example in examples])
    labels = [example["labels"].astype(np.int64) for example in examples]
    targets = [np.concatenate(([start_id], row[:-1])) for row in labels]
    batch: Batch = {
        "source": source,
        "target": pad(targets)[0],
        "labels": pad(labels, IGNORED)[0],
    }
    if mask is not None:
        batch["source_mask"] = mask
    if end_id is not None:
        batch["end_id"] = end_id
        batch["references"] = [example["reference"].tobytes().decode() for example in examples]
    return batch


def seq2seq_loss(model: Any, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of a decoder's labels, and how many it sums over.

    Args:
        model: a Seq2SeqTransformer.
        batch: `source`, int [B, S], maybe its mask, `source_mask`, bool; `target` and `labels`, int
            [B, T]; where a label is -100 nothing is predicted. Padding of targets is on the right,
            where no real token sees it, so that they need no mask.
        label_smoothing: see `token_loss`.
    """
    memory = model.encode(batch["source"], batch.get("source_mask"))
    features = model.features(batch["target"], memory)  # [B, T, D]
    return token_loss(model, features, batch["labels"], label_smoothing)
