"""Regression: predicts a number from the pooled vector of an input (`pooling`).

Targets are standardized values. The target of a series may be the change from its last number,
divided by its standard deviation. Metrics and predictions are in the units of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from miniformer.config import UserError, option
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema, features_to_array
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, concat_batches
from miniformer.tasks.common.record_results import RecordResults
from miniformer.tasks.common.resampling import pearson, spearman, weighted_mean
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.common.standardize import is_constant, mean_std

SCALE_EPSILON_RATIO = 0.05  # of the mean std of a feature within inputs; added to each std


@dataclasses.dataclass(frozen=True)
class Regression(InputTask):
    """The task of `{"input": ..., "value": ...}` records.

    Args:
        target_mean: subtracted from targets; null: the training data's mean.
        target_std: divides targets; null: the training data's standard deviation.
        target_delta_of: of vector inputs, the index of the feature, from 0, whose next number is
            the value. The target is then (value - last) / (std + scale_epsilon), with last number
            and std of the feature within the input, and the feature is normalized the same way
            (reversible instance normalization, Kim et al. 2022). This extrapolates to levels and
            swings beyond the training data. none: values are plain targets.
        scale_epsilon: added to the std of the feature, which may be 0; null: 0.05 times its mean
            std within the inputs of the training data, or 1 if that is 0.
        input_kind, input_dim, bpe_dropout, shared_token_types, standardize, feature_means,
            feature_stds: see `InputTask`.
    """

    name: ClassVar[str] = "regression"
    loss_unit: ClassVar[str] = "squared stds"
    maximize: ClassVar[frozenset[str]] = frozenset({"pearson", "spearman"})
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "pearson", "spearman", "loss")

    target_mean: float | None = None
    target_std: float | None = option(None, above=0.0)
    target_delta_of: int | str = option("none", low=0)
    scale_epsilon: float | None = option(None, above=0.0)

    @property
    def schema(self) -> Schema:
        return {**super().schema, "value": schema.check_number}

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if not isinstance(self.target_delta_of, int) and self.target_delta_of != "none":
            problems.append(
                f"target_delta_of must be the index of a feature or none, not "
                f"{self.target_delta_of!r}"
            )
        return problems

    def fit(self, records: Records) -> Self:
        fitted = super().fit(records)
        if fitted.is_series() and self.scale_epsilon is None:
            typical, _ = mean_std(
                fitted.series_feature(record["input"]).std() for record in records
            )
            fitted = dataclasses.replace(
                fitted, scale_epsilon=SCALE_EPSILON_RATIO * float(typical) or 1.0
            )
        if self.target_mean is not None and self.target_std is not None:
            return fitted
        mean, std = map(float, mean_std(fitted.raw_target(record) for record in records))
        if self.target_std is None and is_constant(mean, std):
            target = "change" if fitted.is_series() else "value"
            raise UserError(
                f"{records.name}: every {target} is {mean:g}; there is nothing to learn"
            )
        return dataclasses.replace(
            fitted,
            target_mean=mean if self.target_mean is None else self.target_mean,
            target_std=std if self.target_std is None else self.target_std,
        )

    def num_outputs(self) -> int:
        return 1

    def data_warnings(self) -> Iterator[str]:
        yield from super().data_warnings()
        if self.scale_epsilon is not None and not self.is_series():
            yield "warning: scale_epsilon has no effect without target_delta_of"

    def is_series(self) -> bool:
        """True if the target is the next number of a feature."""
        return isinstance(self.target_delta_of, int)

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        """Model config fields; a series is pooled at its last vector."""
        config = {"pooling": "last", **overrides} if self.is_series() else overrides
        return super().model_config(config, tokenizer)

    def can_truncate(self) -> bool:
        return not self.is_series()

    def offset_scale(self, raw_input: Any) -> tuple[float, float]:
        """Offset and scale of an input's target, in the units of the data."""
        if not self.is_series():
            return 0.0, 1.0
        if self.scale_epsilon is None:
            raise UserError(
                "scale_epsilon is not known yet; set it in task_config, or call fit(records)"
            )
        feature = self.series_feature(raw_input)
        return float(feature[-1]), float(feature.std()) + self.scale_epsilon

    def raw_target(self, record: Record) -> float:
        """Target of a record before standardization."""
        base, scale = self.offset_scale(record["input"])
        return (float(record["value"]) - base) / scale

    def series_feature(self, raw_input: Any) -> np.ndarray:
        """The feature of an input whose next number is the target, float64 [T]."""
        assert isinstance(self.target_delta_of, int)
        if self.resolved_input_kind() != "features" or self.target_delta_of >= (
            self.input_dim or 0
        ):
            raise UserError(
                f"task_config: target_delta_of={self.target_delta_of} is the index of a feature, "
                "and inputs "
                + (
                    f"are vectors of {self.input_dim}; the first is 0"
                    if self.resolved_input_kind() == "features"
                    else "are texts here; leave it out"
                )
            )
        return features_to_array(raw_input, np.float64)[:, self.target_delta_of]

    def encode_inputs(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Encodes inputs; see `InputTask`. The feature of a series is normalized."""
        examples = super().encode_inputs(records, tokenizer, seq_len)
        if self.is_series():
            for example, record in zip(examples, records, strict=True):
                base, scale = self.offset_scale(record["input"])
                inputs = example["inputs"].copy()
                feature = self.series_feature(record["input"])[: len(inputs)]
                inputs[:, self.target_delta_of] = (feature - base) / scale
                example["inputs"] = inputs
        return examples

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples with `inputs`, see `encode_inputs`, and `labels`, the standardized target.

        `bases` and `scales` are offset and scale of the target, in the units of the data.
        """
        mean, std = self._require_mean_std()
        examples = self.encode_inputs(records, tokenizer, seq_len)
        for example, record in zip(examples, records, strict=True):
            if self.is_series() and example["cut"]:
                raise UserError(
                    f"an input is {len(record['input'])} long, and seq_len is {seq_len}; "
                    f"target_delta_of={self.target_delta_of} needs its last vector: raise seq_len, "
                    "or set target_delta_of in task_config to none"
                )
            example["labels"] = (self.raw_target(record) - mean) / std
            example["bases"], example["scales"] = self.offset_scale(record["input"])
        return examples

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed squared error of standardized values, and their number."""
        predictions = self.logits(model, batch)[:, 0].float()  # [B, 1] -> [B]
        error = predictions - batch["labels"].to(predictions)
        return (error * error).sum(), error.new_tensor(len(error))

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        predictions = self.logits(model, batch)[:, 0].float()
        names = {"values": "labels", "bases": "bases", "scales": "scales"}
        stats = {name: batch[column].to(predictions) for name, column in names.items()}
        return {"predictions": predictions, **stats}

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; MAE and RMSE in the data's units; Pearson's and Spearman's correlation.

        A correlation with constant values is undefined and reported as 0.
        """
        _, std = self._require_mean_std()
        predictions, values, scales = (
            concat_batches(batch_stats, name).double()
            for name in ("predictions", "values", "scales")
        )
        error = predictions - values  # before denormalization, whose offset would round it away
        loss = float(error.square().mean())
        error = std * error * scales
        predictions, values = self._denormalized(batch_stats)
        varies = len(values) > 1 and float(values.std()) > 0 and float(predictions.std()) > 0
        return {
            "loss": loss,
            "mae": float(error.abs().mean()),
            "rmse": math.sqrt(float(error.square().mean())),
            "pearson": float(pearson_corrcoef(predictions, values)) if varies else 0.0,
            "spearman": float(spearman_corrcoef(predictions, values)) if varies else 0.0,
        }

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults:
        """Results of each record; predictions and truths are in the units of the data."""
        _, std = self._require_mean_std()
        outputs, labels, scales = (
            concat_batches(batch_stats, name).double().numpy()
            for name in ("predictions", "values", "scales")
        )
        predictions, values = (tensor.numpy() for tensor in self._denormalized(batch_stats))
        return RecordResults(
            records=concat_batches(batch_stats, "records").numpy(),
            predictions=predictions.tolist(),
            truths=values.tolist(),
            losses=(outputs - labels) ** 2,
            weights=np.ones(len(outputs)),
            statistics={
                "errors": std * scales * (outputs - labels),
                "predictions": predictions,
                "values": values,
            },
        ).in_data_order()

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        errors, predictions, values = (
            results.statistics[name] for name in ("errors", "predictions", "values")
        )
        return {
            **super().resampled_metrics(results, counts),
            "mae": weighted_mean(counts, np.abs(errors), results.weights),
            "rmse": np.sqrt(weighted_mean(counts, errors**2, results.weights)),
            "pearson": pearson(counts, predictions, values),
            "spearman": spearman(counts, predictions, values),
        }

    def plot(self, batch_stats: Sequence[BatchStats], path: Path) -> bool:
        from miniformer.tasks.common.plots import plot_predictions

        predictions, values = self._denormalized(batch_stats)
        plot_predictions(values.numpy(), predictions.numpy(), path)
        return True

    def format_outputs(self, outputs: Tensor, inputs: Sequence[Any]) -> list[Any]:
        """The value of each input, in the units of the training data."""
        mean, std = self._require_mean_std()
        units = map(self.offset_scale, inputs)
        return [
            base + scale * (mean + std * output)
            for (base, scale), output in zip(units, outputs[:, 0].tolist(), strict=True)
        ]

    def _denormalized(self, batch_stats: Sequence[BatchStats]) -> tuple[Tensor, Tensor]:
        """Predictions and values in the units of the data; float64 [N]."""
        mean, std = self._require_mean_std()
        predictions, values, bases, scales = (
            concat_batches(batch_stats, name).double()
            for name in ("predictions", "values", "bases", "scales")
        )
        return bases + scales * (mean + std * predictions), bases + scales * (mean + std * values)

    def _require_mean_std(self) -> tuple[float, float]:
        if self.target_mean is None or self.target_std is None:
            raise UserError(
                "target_mean and target_std are not known yet; set them in task_config, "
                "or call fit(records)"
            )
        return self.target_mean, self.target_std
