"""Regression: a number for each input, by the head on its one vector (`pooling`).

The model learns values less their mean, in units of their spread; figures and answers are in the
units of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor
from torchmetrics.functional import regression as measures

from miniformer.config import GenerationConfig, UserError, option
from miniformer.data import fields
from miniformer.data.buckets import Batch
from miniformer.data.fields import Schema
from miniformer.data.records import Record, Records
from miniformer.data.table import Example
from miniformer.data.tokenizer import Tokenizer
from miniformer.tasks.input_task import InputTask, batches_of
from miniformer.tasks.task import Measured, joined


@dataclasses.dataclass(frozen=True)
class Regression(InputTask):
    """The task of `{"input": ..., "value": ...}` records.

    Args:
        mean: what is taken off a value before it is learnt; null: the training data's mean.
        spread: by what it is then divided; null: the training data's standard deviation.
        change_of: of inputs that are vectors, the number of the feature, from 0, that the value is
            the next of: what is learnt is its change since the last vector. So a model is not lost
            where a series climbs higher than any it was trained on.
        input_kind, input_dim, bpe_dropout, mark_shared: see `InputTask`.
    """

    name: ClassVar[str] = "regression"
    unit: ClassVar[str] = "squared spreads"
    larger_is_better: ClassVar[frozenset[str]] = frozenset({"pearson", "spearman"})
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "pearson", "spearman", "loss")

    mean: float | None = None
    spread: float | None = option(None, above=0.0)
    change_of: int | None = option(None, low=0)

    @property
    def schema(self) -> Schema:
        return {**super().schema, "value": fields.number}

    def fit(self, records: Records) -> Self:
        fitted = super().fit(records)
        if self.mean is not None and self.spread is not None:
            return fitted
        count, mean, squares = 0, 0.0, 0.0
        for record in records:  # Welford 1962: exact where values lie far from 0
            count += 1
            value = record["value"] - fitted.base(record["input"])
            away = value - mean
            mean += away / count
            squares += away * (value - mean)
        spread = math.sqrt(squares / count)
        if self.spread is None and not spread > 1e-12 * abs(mean):
            what = "value" if self.change_of is None else "change"
            raise UserError(f"{records.name}: every {what} is {mean:g}; there is nothing to learn")
        return dataclasses.replace(
            fitted,
            mean=mean if self.mean is None else self.mean,
            spread=spread if self.spread is None else self.spread,
        )

    def outputs(self) -> int:
        return 1

    def base(self, given: Any) -> float:
        """What is added to what is learnt of an input: the feature's last value, or nothing."""
        if self.change_of is None:
            return 0.0
        if self.kind() != "features" or self.change_of >= (self.input_dim or 0):
            raise UserError(
                f"task_config: change_of={self.change_of} is the number of a feature, and inputs "
                + (
                    f"are vectors of {self.input_dim}; the first is 0"
                    if self.kind() == "features"
                    else "are texts here; leave it out"
                )
            )
        return float(given[-1][self.change_of])

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """`inputs` of each record, see `encoded`, and its standardised value, `labels`.

        Where a change is learnt, also `bases`, that from which it counts, in spreads.
        """
        mean, spread = self._known()
        examples = self.encoded(records, tokenizer, seq_len)
        for example, record in zip(examples, records, strict=True):
            base = self.base(record["input"])
            if self.change_of is not None and example["cut"]:
                raise UserError(
                    f"an input is {len(record['input'])} long, and {seq_len} are read of it; "
                    "change_of needs its last vector: raise seq_len"
                )
            example["labels"] = (record["value"] - base - mean) / spread
            if self.change_of is not None:
                example["bases"] = base / spread
        return examples

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed squared error of standardised values, and how many there are."""
        guesses = self.logits(model, batch)[:, 0].float()  # [B, 1] -> [B]
        wrong = guesses - batch["labels"].to(guesses)
        return (wrong * wrong).sum(), wrong.new_tensor(len(wrong))

    def measure(self, model: Any, batch: Batch) -> Measured:
        guesses = self.logits(model, batch)[:, 0].float()
        found = {"guesses": guesses, "values": batch["labels"].to(guesses)}
        if self.change_of is not None:
            found["bases"] = batch["bases"].to(guesses)
        return found

    def figures(
        self, measured: Sequence[Measured], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; MAE and RMSE in the data's units; Pearson's and Spearman's correlation.

        A correlation with what does not vary is not defined: it is given as 0.
        """
        _, spread = self._known()
        guesses, values = (joined(measured, name).double() for name in ("guesses", "values"))
        loss = float(measures.mean_squared_error(guesses, values))
        error = float(measures.mean_absolute_error(guesses, values))
        # Differences first: beside large values they would be lost.
        guesses, values = self._whole(measured, guesses, values)
        varies = len(values) > 1 and float(values.std()) > 0 and float(guesses.std()) > 0
        return {
            "loss": loss,
            "mae": spread * error,
            "rmse": spread * math.sqrt(loss),
            "pearson": float(measures.pearson_corrcoef(guesses, values)) if varies else 0.0,
            "spearman": float(measures.spearman_corrcoef(guesses, values)) if varies else 0.0,
        }

    def draw(self, measured: Sequence[Measured], path: Path) -> bool:
        from miniformer.tasks.pictures import draw_guesses

        mean, spread = self._known()
        guesses, values = (joined(measured, name).double() for name in ("guesses", "values"))
        guesses, values = self._whole(measured, guesses, values)
        draw_guesses((values * spread + mean).numpy(), (guesses * spread + mean).numpy(), path)
        return True

    def predict(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        inputs: Sequence[Any],
        options: GenerationConfig,
    ) -> list[Any]:
        """The value of each input, in the units of the training data."""
        mean, spread = self._known()
        batches = batches_of(self, model, tokenizer, inputs)
        guesses = [guess for batch in batches for guess in batch[:, 0].tolist()]
        return [
            self.base(given) + mean + spread * guess
            for given, guess in zip(inputs, guesses, strict=True)
        ]

    def _whole(
        self, measured: Sequence[Measured], guesses: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is learnt, with what it is a change of."""
        if self.change_of is None:
            return guesses, values
        bases = joined(measured, "bases").double()
        return guesses + bases, values + bases

    def _known(self) -> tuple[float, float]:
        if self.mean is None or self.spread is None:
            raise UserError("mean and spread are not known yet; give them, or call fit(records)")
        return self.mean, self.spread
