"""Sources and targets: batches of them, and their loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, pad_sequences
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.tasks.base import symmetric_kl, token_loss


def collate_seq2seq(examples: list[Example], *, start_id: int, end_id: int | None = None) -> Batch:
    """A batch: `source`, `target`, `labels`, int64 [B, S or T], maybe `source_mask`.

    With `end_id`, which ends a target, also that and the targets' texts, to write and compare.
    """
    source, mask = pad_sequences([example["source"] for example in examples])
    labels = [example["labels"].astype(np.int64) for example in examples]
    targets = [np.concatenate(([start_id], row[:-1])) for row in labels]
    batch: Batch = {
        "source": source,
        "target": pad_sequences(targets)[0],
        "labels": pad_sequences(labels, IGNORE_INDEX)[0],
    }
    if mask is not None:
        batch["source_mask"] = mask
    if end_id is not None:
        batch["end_id"] = end_id
        batch["references"] = [example["reference"].tobytes().decode() for example in examples]
    return batch


def seq2seq_loss(
    model: Any, batch: Batch, label_smoothing: float = 0.0, r_drop: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of a decoder's labels, and how many it sums over.

    Args:
        model: a Seq2SeqTransformer.
        batch: `source`, int [B, S], maybe its mask, `source_mask`, bool; `target` and `labels`, int
            [B, T]; where a label is -100 nothing is predicted. Padding of targets is on the right,
            where no real token sees it, so that they need no mask.
        label_smoothing: see `token_loss`.
        r_drop: weight of the divergence between two passes, in training; 0: one pass.
    """
    labels, passes = batch["labels"], 2 if r_drop and model.training else 1
    read = [_features(model, batch) for _ in range(passes)]  # [B, T, D] each
    losses = [token_loss(model, features, labels, label_smoothing) for features in read]
    loss, count = losses[0]
    if passes == 2:
        kept = labels != IGNORE_INDEX
        apart = symmetric_kl(*(model.logits(features[kept]) for features in read))
        loss = (loss + losses[1][0]) / 2 + r_drop * apart
    return loss, count


def _features(model: Any, batch: Batch) -> Tensor:
    memory = model.encode(batch["source"], batch.get("source_mask"))
    features: Tensor = model.features(batch["target"], memory)
    return features
