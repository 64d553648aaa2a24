"""Multi-label classification: predicts any number of labels from the pooled vector of an input.

Each label has a probability of its own. It is predicted if its probability reaches its threshold,
which the validation data decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from miniformer.config import option
from miniformer.data.batching.columnar import ColumnarStore, Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, concat_batches, mean
from miniformer.tasks.common import thresholds as tuning
from miniformer.tasks.common.label_task import LabelTask
from miniformer.tasks.common.record_results import RecordResults
from miniformer.tasks.common.resampling import f1_scores, sum_records, weighted_mean

_DEFAULT_THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True)
class MultiLabelClassification(LabelTask):
    """The task of `{"input": ..., "labels": [...]}` records; the list may be empty.

    Args:
        label_smoothing: fraction of each label that is replaced by 0.5, in training.
        thresholds: probability from which a label is predicted: one for all labels, or one for
            each in the order of `classes`; null: tuned on the validation data, else 0.5.
        threshold_tuning: label: one for each label, between the one with its highest F1 and the
            common one, which labels with fewer than 5 validation records get; common: one
            threshold with the highest macro F1; none: 0.5.
        balanced_sampling: see `LabelTask`. A record is sampled as one of its rarest label.
        classes, class_counts: see `LabelTask`.
        class_weights: weight of the positive records of each label: balanced: negative records per
            positive record; or a list in the order of `classes`; null: 1.
        input_kind, input_dim, max_input_len, bpe_dropout, shared_token_types, standardize,
            feature_means, feature_stds: see `InputTask`.
    """

    name: ClassVar[str] = "multilabel_classification"
    supports_wide_head: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "nats"
    maximize: ClassVar[frozenset[str]] = frozenset(
        {"macro_f1", "micro_f1", "samples_f1", "subset_accuracy"}
    )
    metrics: ClassVar[tuple[str, ...]] = (
        "macro_f1", "micro_f1", "samples_f1", "subset_accuracy", "loss",
    )  # fmt: skip
    proportions: ClassVar[tuple[str, ...]] = ("subset_accuracy",)

    label_smoothing: float = option(0.0, low=0.0, high=0.99)
    thresholds: float | list[float] | None = option(None, low=0.0, high=1.0)
    threshold_tuning: str = option("label", choices=("label", "common", "none"))

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if isinstance(self.thresholds, list):
            if self.classes is None:
                problems.append(
                    "thresholds need classes, whose order they follow; set classes, too"
                )
            elif len(self.thresholds) != len(self.classes):
                problems.append(
                    f"thresholds has {len(self.thresholds)} numbers for {len(self.classes)} classes"
                )
            if not all(0.0 <= value <= 1.0 for value in self.thresholds):
                problems.append("thresholds must be from 0 to 1")
        return problems

    @property
    def schema(self) -> Schema:
        return {**super().schema, "labels": self._check_labels}

    def _check_labels(self, value: Any) -> str | None:
        if not isinstance(value, list):
            kind = f"the {type(value).__name__} {value!r}"
            return f"must be a list of names or integers, which may be empty, not {kind}"
        for position, label in enumerate(value, 1):
            if problem := self.check_class(label):
                return f"has label {position}, which {problem}"
            if type(label) is not type(value[0]):
                return f"mixes names and integers: {value[0]!r} and {label!r}"
        if len(set(value)) < len(value):
            repeated = next(label for label in value if value.count(label) > 1)
            return f"has {repeated!r} more than once; keep one"
        return None

    def labels_of(self, record: Record) -> list[Any]:
        labels: list[Any] = record["labels"]
        return labels

    def balanced_weights(self, counts: list[int], total: int) -> list[float]:
        """Weights with which the positive and the negative records of a label weigh the same."""
        return [(total - count) / count for count in counts]

    def class_indices(self, chunk: ColumnarStore) -> np.ndarray:
        """The rarest label of each example; see `LabelTask`."""
        labels = chunk.columns["labels"].reshape(-1, self.num_outputs()).astype(bool)
        counts = np.where(labels, np.array(self.class_counts), np.iinfo(np.int64).max)
        return np.where(labels.any(1), counts.argmin(1), -1)

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples with `inputs`, see `encode_inputs`, and `labels`: 0 or 1 by class, uint8 [C]."""
        indices = {name: index for index, name in enumerate(self.require_classes())}
        examples = self.encode_inputs(records, tokenizer, seq_len)
        for example, record in zip(examples, records, strict=True):
            example["labels"] = np.zeros(len(indices), np.uint8)
            example["labels"][[indices[label] for label in record["labels"]]] = 1
        return examples

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed binary cross-entropy in nats of each record and label, and their number."""
        smoothing = self.label_smoothing if model.training else 0.0
        return self._cross_entropy(self.logits(model, batch), batch["labels"], smoothing)

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        smoothing = self.label_smoothing if model.training else 0.0
        losses = self._label_losses(self.logits(model, batch), batch["labels"], smoothing, "none")
        return losses.sum(1)

    def _cross_entropy(
        self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        loss = self._label_losses(logits, labels, label_smoothing, "sum")
        return loss, loss.new_tensor(labels.numel())

    def _label_losses(
        self, logits: Tensor, labels: Tensor, label_smoothing: float, reduction: str
    ) -> Tensor:
        """Binary cross-entropy of each record and label, [B, C], or their sum."""
        logits = logits.float()  # [B, C]
        targets = labels.to(logits) * (1 - label_smoothing) + label_smoothing / 2
        weights = None
        if isinstance(self.class_weights, list):
            weights = logits.new_tensor(self.class_weights)
        return F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weights, reduction=reduction
        )

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        logits = self.logits(model, batch)
        loss, count = self._cross_entropy(logits, batch["labels"])
        return {
            "loss": loss,
            "count": count,
            "probs": logits.float().sigmoid(),
            "labels": batch["labels"],
        }

    def fit_to_validation(self, batch_stats: Sequence[BatchStats]) -> Self:
        """The task with thresholds that fit these probabilities, unless they are given."""
        if self.thresholds is not None or self.threshold_tuning == "none" or not batch_stats:
            return self
        probs, labels = _probs_and_labels(batch_stats)
        if self.threshold_tuning == "common":
            return dataclasses.replace(self, thresholds=tuning.best_common_threshold(probs, labels))
        return dataclasses.replace(self, thresholds=tuning.best_thresholds(probs, labels).tolist())

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; F1 averaged over labels, over all decisions and over records; subset accuracy.

        Labels are decided by the thresholds. `subset_accuracy` is the share of records whose
        predicted labels are exactly theirs.
        """
        probs, labels = _probs_and_labels(batch_stats)
        predictions = self.decide(probs)
        return {
            "loss": mean(batch_stats, "loss", "count"),
            "macro_f1": tuning.macro_f1(predictions, labels),
            "micro_f1": tuning.micro_f1(predictions, labels),
            "samples_f1": tuning.samples_f1(predictions, labels),
            "subset_accuracy": float((predictions == labels).all(1).mean()),
        }

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults:
        """Results of each record; predictions and truths are lists of labels."""
        probs, labels = _probs_and_labels(batch_stats)
        predictions = self.decide(probs)
        class_counts = [(predictions & labels).sum(0), predictions.sum(0), labels.sum(0)]
        return RecordResults(
            records=concat_batches(batch_stats, "records").numpy(),
            predictions=self._names(predictions),
            truths=self._names(labels),
            losses=self._record_losses(probs, labels),
            weights=np.ones(len(labels)),
            correct=(predictions == labels).all(1),
            classes=self.require_classes(),
            class_scores=probs,
            class_counts=np.stack(class_counts, 1),
            statistics={"predictions": predictions, "labels": labels},
        ).in_data_order()

    def _record_losses(self, probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Mean loss of each record, float64 [N]."""
        p = np.clip(probs.astype(np.float64), 1e-15, 1 - 1e-15)
        weights = self.class_weights if isinstance(self.class_weights, list) else 1.0
        losses = np.where(labels, -np.asarray(weights) * np.log(p), -np.log1p(-p))
        return np.asarray(losses.mean(1))

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        predictions, labels = (results.statistics[name] for name in ("predictions", "labels"))
        sums = tuple(
            sum_records(counts, x) for x in (predictions & labels, predictions, labels)
        )  # [R, C] each
        ones = np.ones(len(results))
        records_f1 = tuning.f1_along(predictions, labels, axis=1)
        empty = ~(predictions.any(1) | labels.any(1))
        return {
            **super().resampled_metrics(results, counts),
            "macro_f1": f1_scores(*sums).mean(-1),
            "micro_f1": f1_scores(*(x.sum(-1) for x in sums)),
            "samples_f1": weighted_mean(counts, records_f1 + empty, ones),
            "subset_accuracy": weighted_mean(counts, (predictions == labels).all(1), ones),
        }

    def _names(self, decisions: np.ndarray) -> list[list[Any]]:
        """Labels of each row of bool [N, C]."""
        classes = self.require_classes()
        return [[label for label, x in zip(classes, row, strict=True) if x] for row in decisions]

    def decide(self, probs: np.ndarray) -> np.ndarray:
        """Predicted labels of probabilities [N, C], bool [N, C]."""
        threshold = _DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds
        return probs >= np.asarray(threshold)

    def report_markdown(self, batch_stats: Sequence[BatchStats]) -> str:
        """Threshold, precision, recall, F1 and records of each label."""
        probs, labels = _probs_and_labels(batch_stats)
        predictions = self.decide(probs)
        thresholds = np.broadcast_to(
            _DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds, probs.shape[1]
        )
        rows = [
            "| label | threshold | precision | recall | F1 | records |",
            "|---|---|---|---|---|---|",
        ]
        for index, label in enumerate(self.require_classes()):
            predicted, true = predictions[:, index], labels[:, index]
            hits, name = int((predicted & true).sum()), str(label).replace("|", "\\|")
            precision, recall = hits / max(1, predicted.sum()), hits / max(1, true.sum())
            f1 = 2 * hits / max(1, predicted.sum() + true.sum())
            rows.append(
                f"| {name} | {thresholds[index]:.3f} | {precision:.3f} | {recall:.3f} | {f1:.3f} "
                f"| {true.sum():,} |"
            )
        return "\n".join(rows)

    def format_outputs(self, outputs: Tensor, inputs: Sequence[Any]) -> list[Any]:
        """For each input: its `labels`, and the probabilities of all classes as `scores`."""
        classes, probs = self.require_classes(), outputs.float().sigmoid().numpy()
        return [
            {"labels": labels, "scores": dict(zip(classes, scores, strict=True))}
            for labels, scores in zip(self._names(self.decide(probs)), probs.tolist(), strict=True)
        ]


def _probs_and_labels(batch_stats: Sequence[BatchStats]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of all batches, float32 and bool [N, C]."""
    probs, labels = (concat_batches(batch_stats, name).numpy() for name in ("probs", "labels"))
    return probs, labels.astype(bool)
