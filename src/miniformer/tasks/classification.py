"""Classification: predicts the class of an input from its pooled vector (`pooling`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

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
from miniformer.tasks.common.label_task import LabelTask
from miniformer.tasks.common.losses import symmetric_kl
from miniformer.tasks.common.record_results import RecordResults, confusion_matrix
from miniformer.tasks.common.resampling import (
    macro_f1,
    matthews_correlation,
    sum_confusions,
    weighted_mean,
)


@dataclasses.dataclass(frozen=True)
class Classification(LabelTask):
    """The task of `{"input": ..., "label": ...}` records.

    Args:
        label_smoothing: fraction of each label that is spread over all classes, in training.
        r_drop: weight of the divergence between two passes over each batch, which differ by their
            dropout (R-Drop, Wu et al. 2021); 0: one pass.
        classes, class_weights, class_counts, balanced_sampling: see `LabelTask`.
        input_kind, input_dim, max_input_len, bpe_dropout, shared_token_types, standardize,
            feature_means, feature_stds: see `InputTask`.
    """

    name: ClassVar[str] = "classification"
    supports_wide_head: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "nats"
    maximize: ClassVar[frozenset[str]] = frozenset({"accuracy", "macro_f1", "mcc"})
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "mcc", "loss")
    proportions: ClassVar[tuple[str, ...]] = ("accuracy",)

    label_smoothing: float = option(0.0, low=0.0, high=0.99)
    r_drop: float = option(0.0, low=0.0)

    @property
    def schema(self) -> Schema:
        return {**super().schema, "label": self._check_label}

    def _check_label(self, value: Any) -> str | None:
        if isinstance(value, list):
            return "is a list; for several labels use task multilabel_classification and 'labels'"
        return self.check_class(value)

    def labels_of(self, record: Record) -> list[Any]:
        return [record["label"]]

    def balanced_weights(self, counts: list[int], total: int) -> list[float]:
        """Weights with which each class has the same total weight."""
        return [total / (len(counts) * count) for count in counts]

    def class_indices(self, chunk: ColumnarStore) -> np.ndarray:
        return chunk.columns["labels"]

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples with `inputs`, see `encode_inputs`, and `labels`, the class index."""
        indices = {name: index for index, name in enumerate(self.require_classes())}
        examples = self.encode_inputs(records, tokenizer, seq_len)
        for example, record in zip(examples, records, strict=True):
            example["labels"] = indices[record["label"]]
        return examples

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed weighted cross-entropy in nats, and the sum of the weights."""
        first = self.logits(model, batch)
        smoothing = self.label_smoothing if model.training else 0.0
        loss, count = self._weighted_cross_entropy(first, batch["labels"], smoothing)
        if not self.r_drop or not model.training:
            return loss, count
        second = self.logits(model, batch)
        loss = (loss + self._weighted_cross_entropy(second, batch["labels"], smoothing)[0]) / 2
        return loss + self.r_drop * symmetric_kl(first, second), count

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        logits = self.logits(model, batch).float()
        return F.cross_entropy(
            logits,
            batch["labels"],
            self._weights(logits),
            reduction="none",
            label_smoothing=self.label_smoothing if model.training else 0.0,
        )

    def _weights(self, logits: Tensor) -> Tensor | None:
        """Weights of the classes, [C]; None: all are 1."""
        listed = isinstance(self.class_weights, list)
        return logits.new_tensor(self.class_weights) if listed else None

    def _weighted_cross_entropy(
        self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        logits = logits.float()  # [B, C]
        labeled, weights = labels >= 0, self._weights(logits)
        loss = F.cross_entropy(
            logits, labels, weights, reduction="sum", label_smoothing=label_smoothing
        )
        return loss, labeled.sum() if weights is None else weights[labels[labeled]].sum()

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        return self._stats(self.logits(model, batch), batch)

    def _stats(self, logits: Tensor, batch: Batch) -> BatchStats:
        loss, count = self._weighted_cross_entropy(logits, batch["labels"])
        labeled = batch["labels"] >= 0
        return {
            "loss": loss,
            "count": count,
            "predictions": self.decide(logits)[labeled],
            "labels": batch["labels"][labeled],
        }

    def decide(self, logits: Tensor) -> Tensor:
        """Index of the predicted class, int [B]."""
        return logits.argmax(-1)

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss, accuracy, F1 averaged over classes, and Matthews' correlation coefficient."""
        # This import takes seconds, and predictions do not need it.
        from torchmetrics.functional.classification import (
            multiclass_f1_score,
            multiclass_matthews_corrcoef,
        )

        predictions = concat_batches(batch_stats, "predictions")
        labels = concat_batches(batch_stats, "labels")
        count = len(self.require_classes())
        return {
            "loss": mean(batch_stats, "loss", "count"),
            "accuracy": float((predictions == labels).float().mean()),
            "macro_f1": float(multiclass_f1_score(predictions, labels, count, "macro")),
            "mcc": float(multiclass_matthews_corrcoef(predictions, labels, count)),
        }

    def record_step(self, model: Any, batch: Batch) -> BatchStats:
        logits = self.logits(model, batch)
        return {**self._stats(logits, batch), "logits": logits}

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults:
        """Results of each record; predictions and truths are classes."""
        classes = self.require_classes()
        logits = concat_batches(batch_stats, "logits").double()
        truths, predictions, indices = (
            concat_batches(batch_stats, name).numpy()
            for name in ("labels", "predictions", "records")
        )
        log_probs = logits.log_softmax(-1).numpy()  # [N, C]
        rows = np.arange(len(truths))
        weights = np.ones(len(classes))
        if isinstance(self.class_weights, list):
            weights = np.array(self.class_weights)
        return RecordResults(
            records=indices,
            predictions=[classes[index] for index in predictions],
            truths=[classes[index] for index in truths],
            losses=-log_probs[rows, truths],
            weights=weights[truths],
            correct=predictions == truths,
            scores=np.exp(log_probs[rows, predictions]),
            classes=classes,
            class_scores=np.exp(log_probs),
            confusion=confusion_matrix(truths, predictions, len(classes)),
            statistics={"truths": truths, "predictions": predictions},
        ).in_data_order()

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        truths, predictions = (results.statistics[name] for name in ("truths", "predictions"))
        sums = sum_confusions(counts, truths, predictions, len(self.require_classes()))
        return {
            **super().resampled_metrics(results, counts),
            "accuracy": weighted_mean(counts, truths == predictions, np.ones(len(results))),
            "macro_f1": macro_f1(*sums),
            "mcc": matthews_correlation(*sums),
        }

    def confusion_matrix(self, batch_stats: Sequence[BatchStats]) -> Tensor:
        """Records by class (rows) and predicted class (columns), int [C, C]."""
        predictions = concat_batches(batch_stats, "predictions")
        labels = concat_batches(batch_stats, "labels")
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        return multiclass_confusion_matrix(predictions, labels, len(self.require_classes()))

    def report_markdown(self, batch_stats: Sequence[BatchStats]) -> str:
        """The confusion matrix, for up to 20 classes."""
        classes = [str(label).replace("|", "\\|") for label in self.require_classes()]
        if len(classes) > 20:
            return ""
        rows = self.confusion_matrix(batch_stats).tolist()
        return "\n".join(
            [
                f"| class | predicted as {' | '.join(classes)} |",
                f"|---|{'---|' * len(classes)}",
                *(
                    f"| {name} | {' | '.join(map(str, row))} |"
                    for name, row in zip(classes, rows, strict=True)
                ),
            ]
        )

    def plot(self, batch_stats: Sequence[BatchStats], path: Path) -> bool:
        from miniformer.tasks.common.plots import plot_confusion_matrix

        plot_confusion_matrix(
            self.confusion_matrix(batch_stats).numpy(),
            list(map(str, self.require_classes())),
            path,
        )
        return True

    def format_outputs(self, outputs: Tensor, inputs: Sequence[Any]) -> list[Any]:
        """For each input: `label`, its probability `score`, and all probabilities `scores`."""
        classes, probs = self.require_classes(), outputs.float().softmax(-1)
        return [
            {
                "label": classes[index],
                "score": row[index],
                "scores": dict(zip(classes, row, strict=True)),
            }
            for row, index in zip(probs.tolist(), self.decide(outputs).tolist(), strict=True)
        ]
