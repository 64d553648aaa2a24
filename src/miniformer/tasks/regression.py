"""Regression: a number for each input, by the head on its one vector (`pooling`).

The model learns values less their mean, in units of their spread; of a series it may learn what
comes next as a change, in units of how much the series moves. Figures and answers are in the units
of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor
from torchmetrics.functional import regression as measures

from miniformer.config import GenerationConfig, UserError, option
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema, features_to_array
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, concat_batches
from miniformer.tasks.common.inputs import predict_batches
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.common.series import SCALE_EPSILON_RATIO, detect_series_feature
from miniformer.tasks.common.standardize import is_constant, mean_std


@dataclasses.dataclass(frozen=True)
class Regression(InputTask):
    """The task of `{"input": ..., "value": ...}` records.

    Args:
        target_mean: what is taken off a value before it is learnt; null: the training data's mean.
        target_std: by what it is then divided; null: the training data's standard deviation.
        target_delta_of: of inputs that are vectors, the number of the feature, from 0, that the value is
            the next of. What is learnt then is its change since the last vector, in units of how
            much the feature moves within the input, and the feature is read so, too (reversible
            instance normalisation, Kim et al. 2022): a model is not lost where a series climbs
            higher or swings more widely than any it was trained on. auto: the feature whose last
            number is nearest to the values, if held-out training records confirm it (see
            `miniformer.tasks.common.series`); none: values stand for themselves, as where a mean
            is given.
        scale_epsilon: what is added to how much the feature moves, so that one that stands still can be
            divided by it; null: a twentieth of how much it moves in the inputs of the training
            data, on average, or 1 where it never does.
        input_kind, input_dim, bpe_dropout, shared_token_types, standardize, feature_means, feature_stds:
            see `InputTask`.
    """

    name: ClassVar[str] = "regression"
    loss_unit: ClassVar[str] = "squared spreads"
    maximize: ClassVar[frozenset[str]] = frozenset({"pearson", "spearman"})
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "pearson", "spearman", "loss")

    target_mean: float | None = None
    target_std: float | None = option(None, above=0.0)
    target_delta_of: int | str = option("auto", low=0)
    scale_epsilon: float | None = option(None, above=0.0)

    @property
    def schema(self) -> Schema:
        return {**super().schema, "value": schema.check_number}

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if not isinstance(self.target_delta_of, int) and self.target_delta_of not in (
            "auto",
            "none",
        ):
            problems.append(
                f"target_delta_of must be a feature's number, auto or none, not {self.target_delta_of!r}"
            )
        return problems

    def fit(self, records: Records) -> Self:
        fitted = super().fit(records)
        if self.target_delta_of == "auto":
            known = (
                self.target_mean is not None or self.target_std is not None
            )  # those of values, as they are
            found = None if known else detect_series_feature(records)
            fitted = dataclasses.replace(fitted, target_delta_of="none" if found is None else found)
        if fitted.is_series() and self.scale_epsilon is None:
            typical, _ = mean_std(
                fitted.series_feature(record["input"]).std() for record in records
            )
            fitted = dataclasses.replace(
                fitted, scale_epsilon=SCALE_EPSILON_RATIO * float(typical) or 1.0
            )
        if self.target_mean is not None and self.target_std is not None:
            return fitted
        mean, spread = map(float, mean_std(fitted.raw_target(record) for record in records))
        if self.target_std is None and is_constant(mean, spread):
            what = "change" if fitted.is_series() else "value"
            raise UserError(f"{records.name}: every {what} is {mean:g}; there is nothing to learn")
        return dataclasses.replace(
            fitted,
            target_mean=mean if self.target_mean is None else self.target_mean,
            target_std=spread if self.target_std is None else self.target_std,
        )

    def num_outputs(self) -> int:
        return 1

    def data_warnings(self) -> Iterator[str]:
        yield from super().data_warnings()
        if self.scale_epsilon is not None and not self.is_series():
            yield "warning: scale_epsilon has no effect: values are not learned as the next of a feature"
        if self.is_series():
            yield (
                f"target_delta_of: {self.target_delta_of}; values are learnt as what comes next of that feature "
                '(--task_config \'{"target_delta_of": "none"}\' if they are not)'
            )

    def is_series(self) -> bool:
        """Whether a value is the next of a feature."""
        return isinstance(self.target_delta_of, int)

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        """What comes next is read off the last vector."""
        config = {"pooling": "last", **overrides} if self.is_series() else overrides
        return super().model_config(config, tokenizer)

    def can_truncate(self) -> bool:
        return not self.is_series()

    def offset_scale(self, raw_input: Any) -> tuple[float, float]:
        """From what and in which units the value of an input is learnt, in those of the data."""
        if not self.is_series():
            return 0.0, 1.0
        if self.scale_epsilon is None:
            raise UserError("scale_epsilon is not known yet; give it, or call fit(records)")
        feature = self.series_feature(raw_input)
        return float(feature[-1]), float(feature.std()) + self.scale_epsilon

    def raw_target(self, record: Record) -> float:
        """What the model learns of a record, not yet standardised."""
        base, scale = self.offset_scale(record["input"])
        return (float(record["value"]) - base) / scale

    def series_feature(self, raw_input: Any) -> np.ndarray:
        """The feature of an input that the value is the next of, float64 [T]."""
        assert isinstance(self.target_delta_of, int)
        if self.resolved_input_kind() != "features" or self.target_delta_of >= (
            self.input_dim or 0
        ):
            raise UserError(
                f"task_config: target_delta_of={self.target_delta_of} is the number of a feature, and inputs "
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
        """What the model reads of each record; see `InputTask`. Of a series in its own units."""
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
        """`inputs` of each record, see `encoded`, and its standardised value, `labels`.

        Of a series also `bases`, that from which a change counts, and `scales`, its units.
        """
        mean, spread = self._require_mean_std()
        examples = self.encode_inputs(records, tokenizer, seq_len)
        for example, record in zip(examples, records, strict=True):
            if self.is_series() and example["cut"]:
                raise UserError(
                    f"an input is {len(record['input'])} long, and {seq_len} are read of it; "
                    f"target_delta_of={self.target_delta_of} needs its last vector: raise seq_len, or set target_delta_of "
                    "in task_config to none"
                )
            example["labels"] = (self.raw_target(record) - mean) / spread
            if self.is_series():
                example["bases"], example["scales"] = self.offset_scale(record["input"])
        return examples

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed squared error of standardised values, and how many there are."""
        guesses = self.logits(model, batch)[:, 0].float()  # [B, 1] -> [B]
        wrong = guesses - batch["labels"].to(guesses)
        return (wrong * wrong).sum(), wrong.new_tensor(len(wrong))

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        guesses = self.logits(model, batch)[:, 0].float()
        found = {"guesses": guesses, "values": batch["labels"].to(guesses)}
        if self.is_series():
            found |= {name: batch[name].to(guesses) for name in ("bases", "scales")}
        return found

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; MAE and RMSE in the data's units; Pearson's and Spearman's correlation.

        A correlation with what does not vary is not defined: it is given as 0.
        """
        _, spread = self._require_mean_std()
        guesses, values = (
            concat_batches(batch_stats, name).double() for name in ("guesses", "values")
        )
        wrong = guesses - values  # before what is added to both: beside that it could be lost
        loss = float(wrong.square().mean())
        wrong = spread * wrong * self._scales(batch_stats)
        guesses, values = (
            self._denormalize(batch_stats, guesses),
            self._denormalize(batch_stats, values),
        )
        varies = len(values) > 1 and float(values.std()) > 0 and float(guesses.std()) > 0
        return {
            "loss": loss,
            "mae": float(wrong.abs().mean()),
            "rmse": math.sqrt(float(wrong.square().mean())),
            "pearson": float(measures.pearson_corrcoef(guesses, values)) if varies else 0.0,
            "spearman": float(measures.spearman_corrcoef(guesses, values)) if varies else 0.0,
        }

    def plot(self, batch_stats: Sequence[BatchStats], path: Path) -> bool:
        from miniformer.tasks.common.plots import plot_predictions

        values, guesses = (
            self._denormalize(batch_stats, concat_batches(batch_stats, name).double()).numpy()
            for name in ("values", "guesses")
        )
        plot_predictions(values, guesses, path)
        return True

    def predict(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        inputs: Sequence[Any],
        options: GenerationConfig,
        *,
        truncate: bool = False,
    ) -> list[Any]:
        """The value of each input, in the units of the training data."""
        mean, spread = self._require_mean_std()
        batches = predict_batches(self, model, tokenizer, inputs, truncate=truncate)
        guesses = [guess for batch in batches for guess in batch[:, 0].tolist()]
        units = [self.offset_scale(given) for given in inputs]
        return [
            base + scale * (mean + spread * guess)
            for (base, scale), guess in zip(units, guesses, strict=True)
        ]

    def _denormalize(self, batch_stats: Sequence[BatchStats], normalized: Tensor) -> Tensor:
        """What is learnt, standardised, as values in the units of the data; float64 [N]."""
        mean, spread = self._require_mean_std()
        bases = concat_batches(batch_stats, "bases").double() if self.is_series() else 0.0
        return bases + self._scales(batch_stats) * (mean + spread * normalized)

    def _scales(self, batch_stats: Sequence[BatchStats]) -> Tensor | float:
        return concat_batches(batch_stats, "scales").double() if self.is_series() else 1.0

    def _require_mean_std(self) -> tuple[float, float]:
        if self.target_mean is None or self.target_std is None:
            raise UserError(
                "target_mean and target_std are not known yet; give them, or call fit(records)"
            )
        return self.target_mean, self.target_std
