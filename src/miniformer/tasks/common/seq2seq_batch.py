"""Collation and loss of source and target pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, pad_sequences
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.tasks.common.losses import example_token_losses, symmetric_kl, token_loss


def collate_seq2seq(
    examples: list[Example],
    random: np.random.Generator | None = None,
    *,
    start_id: int,
    end_id: int | None = None,
) -> Batch:
    """Collates `source`, `target` and `labels`, int64 [B, S or T], and `source_mask` if needed.

    With `end_id`, the EOS token of targets, the batch also has it and the reference texts, for
    metrics of generated text.
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
    """Summed cross-entropy in nats of a decoder's labels, and their number.

    Args:
        model: a Seq2SeqTransformer.
        batch: `source`, int [B, S], an optional `source_mask`, bool; `target` and `labels`, int
            [B, T]; labels of -100 are not predicted. Targets are padded on the right, where no
            token attends to padding, so they need no mask.
        label_smoothing: see `token_loss`.
        r_drop: weight of the divergence between two passes, in training; 0: one pass.
    """
    labels, passes = batch["labels"], 2 if r_drop and model.training else 1
    outputs = [_features(model, batch) for _ in range(passes)]  # [B, T, D] each
    losses = [token_loss(model, features, labels, label_smoothing) for features in outputs]
    loss, count = losses[0]
    if passes == 2:
        labeled = labels != IGNORE_INDEX
        divergence = symmetric_kl(*(model.logits(features[labeled]) for features in outputs))
        loss = (loss + losses[1][0]) / 2 + r_drop * divergence
    return loss, count


def seq2seq_example_losses(model: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy of the labels of each row, [B]; see `seq2seq_loss`."""
    features = _features(model, batch)
    return example_token_losses(model, features, batch["labels"], label_smoothing)


def _features(model: Any, batch: Batch) -> Tensor:
    memory = model.encode(batch["source"], batch.get("source_mask"))
    features: Tensor = model.features(batch["target"], memory)
    return features
