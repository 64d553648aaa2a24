"""Regression: predicts one or several numbers from the pooled vector of an input (`pooling`).

Targets are standardized values. The target of a series may be the change from its last number,
divided by its standard deviation. Metrics and predictions are in the units of the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from miniformer.config import UserError, option
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema, features_to_array
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, concat_batches
from miniformer.tasks.common.record_results import RecordResults
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.common.standardize import is_constant, mean_std
from miniformer.tasks.common.value_kinds import ValueKind
from miniformer.tasks.common.value_metrics import METRICS, average_outputs, value_metrics

SCALE_EPSILON_RATIO = 0.05  # of the mean std of a feature within inputs; added to each std


@dataclasses.dataclass(frozen=True)
class Regression(InputTask):
    """The task of `{"input": ..., "value": ...}` records.

    A value is a number, a list of numbers, or an object of numbers with the same keys.

    Args:
        num_values: numbers of a value that is a list or an object; null: as in the training data,
            or a value is one number.
        value_names: keys of a value that is an object; null: as in the first record.
        target_mean: subtracted from targets, one for each number; null: the training data's mean.
        target_std: divides targets, one for each number; null: the training data's standard
            deviation.
        target_delta_of: of vector inputs, the index of the feature, from 0, whose next number is
            the value. The target is then (value - last) / (std + scale_epsilon), with last number
            and std of the feature within the input, and the feature is normalized the same way
            (reversible instance normalization, Kim et al. 2022). This extrapolates to levels and
            swings beyond the training data. none: values are plain targets.
        scale_epsilon: added to the std of the feature, which may be 0; null: 0.05 times its mean
            std within the inputs of the training data, or 1 if that is 0.
        input_kind, input_dim, max_input_len, bpe_dropout, shared_token_types, standardize,
            feature_means, feature_stds: see `InputTask`.
    """

    name: ClassVar[str] = "regression"
    supports_wide_head: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "squared stds"
    maximize: ClassVar[frozenset[str]] = frozenset({"pearson", "spearman", "r2"})
    metrics: ClassVar[tuple[str, ...]] = (*METRICS, "loss")

    num_values: int | None = option(None, low=1)
    value_names: list[str] | None = None
    target_mean: float | list[float] | None = None
    target_std: float | list[float] | None = option(None, above=0.0)
    target_delta_of: int | str = option("none", low=0)
    scale_epsilon: float | None = option(None, above=0.0)

    @property
    def schema(self) -> Schema:
        return {**super().schema, "value": self._check_value}

    def _check_value(self, value: Any, *, kind_is_known: bool = False) -> str | None:
        """Checks the numbers of a value, and its kind once that is known."""
        given = (self.num_values, self.value_names, self.target_std)
        is_known = kind_is_known or any(item is not None for item in given)
        return self.value_kind.find_problem(value, is_known=is_known)

    @cached_property
    def value_kind(self) -> ValueKind:
        """Kind of the values, as far as it is known."""
        return ValueKind(self.num_values, self.value_names)

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if not isinstance(self.target_delta_of, int) and self.target_delta_of != "none":
            problems.append(
                f"target_delta_of must be the index of a feature or none, not "
                f"{self.target_delta_of!r}"
            )
        names = self.value_names
        if names is not None and len(set(names)) != len(names):
            problems.append("value_names must differ from one another")
        if names is not None and self.num_values not in (None, len(names)):
            problems.append(f"value_names has {len(names)} names for num_values={self.num_values}")
        for name in ("target_mean", "target_std"):
            value = getattr(self, name)
            if isinstance(value, list) and self.num_values not in (None, len(value)):
                problems.append(f"{name} has {len(value)} numbers for num_values={self.num_values}")
        if isinstance(self.target_std, list) and not all(std > 0 for std in self.target_std):
            problems.append("target_std must be above 0")
        return problems

    def fit(self, records: Records) -> Self:
        fitted = super().fit(records)._with_value_kind(records)
        if fitted.is_series() and self.scale_epsilon is None:
            typical, _ = mean_std(
                fitted.series_feature(record["input"]).std() for record in records
            )
            fitted = dataclasses.replace(
                fitted, scale_epsilon=SCALE_EPSILON_RATIO * float(typical) or 1.0
            )
        if self.target_mean is not None and self.target_std is not None:
            return fitted
        check = partial(fitted._check_value, kind_is_known=True)
        records = records.with_schema({**fitted.schema, "value": check})
        means, stds = (
            np.atleast_1d(x).tolist()
            for x in mean_std(fitted.raw_targets(record) for record in records)
        )
        for name, mean, std in zip(fitted.output_names(), means, stds, strict=True):
            if self.target_std is None and is_constant(mean, std):
                target = "change" if fitted.is_series() else "value"
                part = "" if fitted.num_values is None else f" of output {name!r}"
                raise UserError(
                    f"{records.name}: every {target}{part} is {mean:g}; there is nothing to learn"
                )
        is_single = fitted.num_values is None
        return dataclasses.replace(
            fitted,
            target_mean=(means[0] if is_single else means)
            if self.target_mean is None
            else self.target_mean,
            target_std=(stds[0] if is_single else stds)
            if self.target_std is None
            else self.target_std,
        )

    def _with_value_kind(self, records: Records) -> Self:
        """The task with the kind of the first value, unless it is known."""
        if self.num_values is not None or isinstance(self.target_std, float):
            return self
        value = records[0]["value"]
        if not isinstance(value, list | dict):
            return self
        if self.is_series():
            raise UserError(
                "task_config: target_delta_of is for values that are one number; leave it out"
            )
        names = list(value) if isinstance(value, dict) and self.value_names is None else None
        return dataclasses.replace(
            self, num_values=len(value), value_names=self.value_names or names
        )

    def num_outputs(self) -> int:
        return self.num_values or 1

    def output_names(self) -> list[Any]:
        """Names of the outputs, or their numbers from 1."""
        return self.value_names or list(range(1, self.num_outputs() + 1))

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

    def raw_targets(self, record: Record) -> np.ndarray:
        """Targets of a record before standardization, float64 [outputs]."""
        base, scale = self.offset_scale(record["input"])
        return (self.value_kind.to_numbers(record["value"]) - base) / scale

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
        """Examples with `inputs`, see `encode_inputs`, and `labels`, the standardized targets.

        `labels` is a number, or an array of the outputs. `bases` and `scales` are offset and scale
        of the target, in the units of the data.
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
            labels = (self.raw_targets(record) - mean) / std
            example["labels"] = float(labels[0]) if self.num_values is None else labels
            example["bases"], example["scales"] = self.offset_scale(record["input"])
        return examples

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed squared error of standardized values, and their number."""
        predictions = self.logits(model, batch).float()  # [B, outputs]
        error = predictions - batch["labels"].to(predictions).view_as(predictions)
        return (error * error).sum(), error.new_tensor(error.numel())

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        predictions = self.logits(model, batch).float()
        error: Tensor = predictions - batch["labels"].to(predictions).view_as(predictions)
        return (error * error).sum(1)

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        predictions = self.logits(model, batch).float()
        if self.num_values is None:
            predictions = predictions[:, 0]
        names = {"values": "labels", "bases": "bases", "scales": "scales"}
        stats = {name: batch[column].to(predictions) for name, column in names.items()}
        return {"predictions": predictions, **stats}  # [B] or [B, outputs]; bases, scales: [B]

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; MAE and RMSE in the data's units; Pearson's and Spearman's correlation; R2.

        Of several outputs, the metrics are averages, and those of each output have its name, such
        as `rmse_price`. Correlations and R2 with constant values are undefined and reported as 0.
        """
        errors, predictions, values, loss = self._errors(batch_stats)
        counts = np.ones((1, len(errors)))

        def metrics_of(output: int) -> dict[str, float]:
            columns = (array[:, output] for array in (errors, predictions, values))
            return {k: float(v[0]) for k, v in value_metrics(counts, *columns).items()}

        if self.num_values is None:
            return {"loss": float(loss.mean()), **metrics_of(0)}
        return {"loss": float(loss.mean()), **average_outputs(self.output_names(), metrics_of)}

    def _errors(
        self, batch_stats: Sequence[BatchStats]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Errors, predictions and values in units of the data; squared standardized errors.

        Errors are computed before denormalization, whose offset would round them away.

        Returns:
            float64 [N, outputs] each.
        """
        mean, std = self._require_mean_std()
        outputs, labels, bases, scales = (
            concat_batches(batch_stats, name).double().numpy().reshape(-1, columns)
            for name, columns in (
                ("predictions", self.num_outputs()), ("values", self.num_outputs()),
                ("bases", 1), ("scales", 1),
            )
        )  # fmt: skip
        predictions, values = (bases + scales * (mean + std * x) for x in (outputs, labels))
        return std * (outputs - labels) * scales, predictions, values, (outputs - labels) ** 2

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults:
        """Results of each record; predictions and truths are in the units of the data."""
        errors, predictions, values, losses = self._errors(batch_stats)
        return RecordResults(
            records=concat_batches(batch_stats, "records").numpy(),
            predictions=[self.value_kind.from_numbers(row) for row in predictions.tolist()],
            truths=[self.value_kind.from_numbers(row) for row in values.tolist()],
            losses=losses.mean(1),
            weights=np.ones(len(errors)),
            statistics={"errors": errors, "predictions": predictions, "values": values},
        ).in_data_order()

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        def metrics_of(output: int) -> dict[str, np.ndarray]:
            names = ("errors", "predictions", "values")
            columns = (results.statistics[name][:, output] for name in names)
            return value_metrics(counts, *columns)

        loss = super().resampled_metrics(results, counts)
        if self.num_values is None:
            return {**loss, **metrics_of(0)}
        return {**loss, **average_outputs(self.output_names(), metrics_of)}

    def plot(self, batch_stats: Sequence[BatchStats], path: Path) -> bool:
        from miniformer.tasks.common.plots import plot_predictions

        _, predictions, values, _ = self._errors(batch_stats)
        if self.num_values is not None:  # outputs have different units
            mean, std = self._require_mean_std()
            predictions, values = (predictions - mean) / std, (values - mean) / std
        plot_predictions(values.ravel(), predictions.ravel(), path)
        return True

    def format_outputs(self, outputs: Tensor, inputs: Sequence[Any]) -> list[Any]:
        """The value of each input, in the units and the format of the training data."""
        mean, std = self._require_mean_std()
        units = map(self.offset_scale, inputs)
        return [
            self.value_kind.from_numbers((base + scale * (mean + std * output)).tolist())
            for (base, scale), output in zip(units, outputs.double().numpy(), strict=True)
        ]

    def _require_mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each output, float64 [outputs]."""
        if self.target_mean is None or self.target_std is None:
            raise UserError(
                "target_mean and target_std are not known yet; set them in task_config, "
                "or call fit(records)"
            )
        return np.atleast_1d(self.target_mean), np.atleast_1d(self.target_std)
