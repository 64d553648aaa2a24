"""Ordinal regression: predicts one of ordered classes, such as ratings, from a pooled vector.

The proportional-odds model (McCullagh 1980): P(class > k) = sigmoid(score - threshold k). All
classes share the score, so that the probabilities are consistent, unlike those of independent
binary models (Cao et al. 2020). Model and thresholds are trained by maximum likelihood.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, concat_batches
from miniformer.tasks.classification import Classification
from miniformer.tasks.common.record_results import RecordResults
from miniformer.tasks.common.resampling import divide, sum_records, weighted_mean


@dataclasses.dataclass(frozen=True)
class OrdinalRegression(Classification):
    """The task of `{"input": ..., "label": ...}` records whose classes have an order.

    Args:
        classes: the classes from the lowest to the highest; null: the integers of the training
            data, ascending. Names have no order of their own, so that they must be given.
        class_weights, class_counts, balanced_sampling: see `LabelTask`.
        label_smoothing, r_drop: see `Classification`.
        input_kind, input_dim, max_input_len, bpe_dropout, shared_token_types, standardize,
            feature_means, feature_stds: see `InputTask`.
    """

    name: ClassVar[str] = "ordinal_regression"
    maximize: ClassVar[frozenset[str]] = frozenset({"kappa", "accuracy"})
    metrics: ClassVar[tuple[str, ...]] = ("mae", "kappa", "accuracy", "loss")

    def sorted_classes(self, counts: Counter[Any]) -> list[Any]:
        classes = super().sorted_classes(counts)
        if classes and isinstance(classes[0], str):
            names = ", ".join(map(repr, classes[:8])) + ", ..." * (len(classes) > 8)
            raise UserError(
                f"the labels are names, whose order is not known: {names}; list them from the "
                "lowest to the highest as classes in task_config"
            )
        return classes

    def num_outputs(self) -> int:
        return len(self.require_classes()) - 1

    def head_fields(self) -> dict[str, Any]:
        return {"ordered_outputs": True}

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Log-probabilities of the classes, [B, C]; their softmax are the probabilities."""
        return class_log_probs(super().logits(model, batch))

    def decide(self, logits: Tensor) -> Tensor:
        """Index of the median class, which has the least expected absolute error, int [B]."""
        cumulative = logits.double().softmax(-1).cumsum(-1)  # P(class <= k)
        return (cumulative[..., :-1] < 0.5).sum(-1)

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; mean absolute error in classes; quadratic weighted kappa; accuracy.

        Neighboring classes are one apart. Kappa (Cohen 1968) is 0 for chance and 1 for agreement.
        """
        metrics = super().compute_metrics(batch_stats, tokenizer)
        predictions, labels = (
            concat_batches(batch_stats, name).numpy() for name in ("predictions", "labels")
        )
        counts = np.ones((1, len(labels)))
        return {
            "loss": metrics["loss"],
            "mae": float(np.abs(predictions - labels).mean()),
            "kappa": float(quadratic_kappa(counts, predictions, labels)[0]),
            "accuracy": metrics["accuracy"],
        }

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        metrics = super().resampled_metrics(results, counts)
        truths, predictions = (results.statistics[name] for name in ("truths", "predictions"))
        errors = np.abs(predictions - truths)
        return {
            "loss": metrics["loss"],
            "mae": weighted_mean(counts, errors, np.ones(len(results))),
            "kappa": quadratic_kappa(counts, predictions, truths),
            "accuracy": metrics["accuracy"],
        }


def class_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of ordered classes from the logits of P(class > k).

    With a > b, sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which does not
    round to 0 where both are near 0 or 1.

    Args:
        logits: descending, [..., C - 1].

    Returns:
        float32 [..., C].
    """
    logits = logits.float()
    first, last = F.logsigmoid(-logits[..., :1]), F.logsigmoid(logits[..., -1:])
    above, below = logits[..., :-1], logits[..., 1:]
    middle = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    return torch.cat([first, middle, last], -1)


def quadratic_kappa(counts: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights in each resample; 0 if it is not defined.

    It is 1 - E[(p - y)^2] / E[(p - y')^2], with y' drawn independently of p.

    Args:
        counts: times that each resample contains each record, [R, N].
        predictions, labels: class indices, int [N].

    Returns:
        float64 [R].
    """
    p, y = predictions.astype(np.float64), labels.astype(np.float64)
    columns = np.stack([np.ones_like(p), p, y, p * p, y * y, (p - y) ** 2], 1)
    n, sum_p, sum_y, sum_pp, sum_yy, error = sum_records(counts, columns).T
    chance = sum_pp + sum_yy - 2 * divide(sum_p * sum_y, n, 0.0)
    return np.where(chance > 1e-12, 1 - divide(error, chance, 0.0), 0.0)
