"""Predicted tags of the words of a batch, and their statistics for metrics and answers.

Letters: B windows, W words of a window, C classes, n predicted words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.data.batching.length_bucketing import Batch
from miniformer.tasks.base import BatchStats
from miniformer.tasks.tagging.schemes import OUTSIDE
from miniformer.tasks.tagging.viterbi import TagConstraint, decode


def predict_tags(
    logprobs: Tensor,
    batch: Batch,
    classes: Sequence[Any],
    constraint: TagConstraint | None,
    outside_biases: Sequence[float],
) -> Tensor:
    """Predicted classes with each of some biases, int64 [biases, B, W].

    Args:
        logprobs: of each word, [B, W, C], on the CPU.
        batch: `first_word`, `words_after` and `word_lengths`.
        classes: the tags.
        constraint: valid transitions; None: predictions are independent of each other.
        outside_biases: what the log-probability of the tag O is lowered by, in nats.
    """
    outside = torch.tensor([tag == OUTSIDE for tag in classes])
    biases = torch.tensor(outside_biases)[:, None] * outside  # [biases, C]
    logprobs = logprobs - biases[:, None, None]  # [biases, B, W, C]
    if constraint is None:
        return logprobs.argmax(-1)
    columns = (batch["word_lengths"] > 0).sum(1), batch["first_word"], batch["words_after"]
    lengths, first, after = (value.cpu().repeat(len(biases)) for value in columns)
    tags = decode(
        logprobs.flatten(0, 1), lengths, constraint, is_start=first == 0, is_end=after == 0
    )
    return tags.view(logprobs.shape[:-1])


def word_stats(
    logits: Tensor,
    batch: Batch,
    classes: Sequence[Any],
    constraint: TagConstraint | None,
    outside_biases: Sequence[float],
) -> BatchStats:
    """Statistics of each word of a batch, [n] each: see `TaggedWords`.

    With several biases, `predictions` are those of the first, and `biased_predictions`, [n, K],
    those of all K.

    Args:
        logits: of each word, [B, W, C].
        batch: of `collate_words`; with `labels`, statistics have labels and losses, too.
        classes, constraint, outside_biases: see `predict_tags`.
    """
    lengths = batch["word_lengths"].cpu()
    logprobs = logits.float().log_softmax(-1).cpu()
    first, after = batch["first_word"].cpu(), batch["words_after"].cpu()
    biased = predict_tags(logprobs, batch, classes, constraint, outside_biases)
    predictions = biased[0]
    columns = {
        "word_records": batch["records"].cpu()[:, None].expand_as(predictions),
        "positions": first[:, None] + torch.arange(predictions.shape[1]),
        "in_parts": ((first > 0) | (after > 0))[:, None].expand_as(predictions),
        "predictions": predictions,
        "scores": logprobs.gather(2, predictions[..., None])[..., 0].exp(),
    }
    if "labels" in batch:
        labels = batch["labels"].cpu()
        columns["labels"] = labels
        columns["losses"] = -logprobs.gather(2, labels.clamp_min(0)[..., None])[..., 0]
    if len(biased) > 1:
        columns["biased_predictions"] = biased.movedim(0, -1).short()  # [B, W, biases]
    return {name: value[lengths > 0] for name, value in columns.items()}
