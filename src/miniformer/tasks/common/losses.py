"""Losses that tasks share, and the loss of each token.

Letters: B batch, T length, N labeled positions, D width, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.packing import IGNORE_INDEX

_MAX_LOGITS = 2**24  # elements of logits in memory


def token_loss(
    model: Any, features: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of labeled positions, and their number.

    Args:
        model: has a `cross_entropy`.
        features: [B, T, D].
        labels: int [B, T]; -100: not predicted.
        label_smoothing: fraction of each label that is spread over the vocabulary, in training
            only, so that it does not change validation metrics.
    """
    labeled = labels != IGNORE_INDEX
    if not bool(labeled.all()):  # the head runs on labeled positions only
        features, labels = features[labeled], labels[labeled]  # [N, D], [N]
    smoothing = {"label_smoothing": label_smoothing} if label_smoothing and model.training else {}
    loss = model.cross_entropy(features.flatten(0, -2), labels.flatten(), **smoothing)
    return loss, loss.new_tensor(labels.numel())


def example_token_losses(
    model: Any, features: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy in nats of the labeled positions of each row, [B].

    It has no branch on values, for `torch.func`; the logits of all positions are in memory.

    Args:
        model: has `logits`.
        features, labels, label_smoothing: see `token_loss`.
    """
    logits = model.logits(features)  # [B, T, V]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(
        logits.transpose(1, 2),
        labels,
        ignore_index=IGNORE_INDEX,
        reduction="none",
        label_smoothing=label_smoothing if model.training else 0.0,
    )
    return losses.sum(1)


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence (mean of both directions) in nats, summed.

    Args:
        first, second: logits, [..., C].
    """
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2  # KL(p, q) + KL(q, p)


class TokenLossRecorder:
    """A model that records the loss of each token while a task computes their sum.

    Args:
        model: has `cross_entropy` and `logits`; other attributes are the model's, too.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._losses: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The model's own output."""
        return self._model(*args, **options)

    def cross_entropy(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """The model's summed cross-entropy, of features [N, D] and labels [N]."""
        size = max(1, _MAX_LOGITS // self._model.config.vocab_size)
        losses = [
            F.cross_entropy(
                self._model.logits(features[first : first + size]).float(),
                labels[first : first + size],
                reduction="none",
            )
            for first in range(0, max(1, len(labels)), size)  # a batch may have no label
        ]
        self._losses.append(torch.cat(losses).cpu())
        total: Tensor = self._model.cross_entropy(features, labels, **options)
        return total

    def stats(self, batch: Batch) -> dict[str, Tensor]:
        """`token_losses`, float [N], and `token_records`, int64 [N], of a batch's labels.

        Empty for a task whose loss is not that of tokens.

        Args:
            batch: with `labels`, int [B, T], and `records`; see `Task.record_step`.
        """
        if not self._losses:
            return {}
        labeled = (batch["labels"] != IGNORE_INDEX).cpu()
        records = batch["records"] if batch["records"].dim() == 2 else batch["records"][:, None]
        return {
            "token_losses": torch.cat(self._losses),
            "token_records": records.expand_as(labeled)[labeled],
        }
