"""Regression: a number for each input, by the head on its one vector (`pooling`).

The model learns values less their mean, in units of their spread; of a series it may learn what
comes next as a change, in units of how much the series moves. Figures and answers are in the units
of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor
from torchmetrics.functional import regression as measures

from miniformer.config import GenerationConfig, UserError, option
from miniformer.data import fields
from miniformer.data.buckets import Batch
from miniformer.data.fields import Schema, to_array
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
        scale_of: of inputs that are vectors, the number of a feature: by how much it moves within
            an input it is divided, and so is the value, or its change. A model then knows a series
            that swings more widely than those it was trained on (reversible instance
            normalisation, Kim et al. 2022).
        scale_floor: what is added to how much the feature moves, so that a still one can be
            divided by it; null: a twentieth of its standard deviation in the training data.
        input_kind, input_dim, bpe_dropout, mark_shared: see `InputTask`.
    """

    name: ClassVar[str] = "regression"
    unit: ClassVar[str] = "squared spreads"
    larger_is_better: ClassVar[frozenset[str]] = frozenset({"pearson", "spearman"})
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "pearson", "spearman", "loss")

    mean: float | None = None
    spread: float | None = option(None, above=0.0)
    change_of: int | None = option(None, low=0)
    scale_of: int | None = option(None, low=0)
    scale_floor: float | None = option(None, above=0.0)

    @property
    def schema(self) -> Schema:
        return {**super().schema, "value": fields.number}

    def fit(self, records: Records) -> Self:
        fitted = super().fit(records)
        if self.scale_of is not None and self.scale_floor is None:
            numbers = (x for r in records for x in fitted.feature("scale_of", r["input"]).tolist())
            mean, spread = _moments(numbers)
            if not spread > 1e-12 * abs(mean):
                raise UserError(
                    f"{records.name}: feature {self.scale_of} is {mean:g} everywhere; there is "
                    "nothing for scale_of to divide by"
                )
            fitted = dataclasses.replace(fitted, scale_floor=0.05 * spread)
        if self.mean is not None and self.spread is not None:
            return fitted
        mean, spread = _moments(fitted.learnt(record) for record in records)
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
        return 0.0 if self.change_of is None else float(self.feature("change_of", given)[-1])

    def scale(self, given: Any) -> float:
        """By what is multiplied what is learnt of an input, in units of the data."""
        if self.scale_of is None:
            return 1.0
        if self.scale_floor is None:
            raise UserError("scale_floor is not known yet; give it, or call fit(records)")
        return float(self.feature("scale_of", given).std()) + self.scale_floor

    def learnt(self, record: Record) -> float:
        """What the model learns of a record, not yet standardised."""
        given = record["input"]
        return float(record["value"] - self.base(given)) / self.scale(given)

    def feature(self, name: str, given: Any) -> np.ndarray:
        """The feature of an input that `change_of` or `scale_of` names, float64 [T]."""
        number = getattr(self, name)
        if self.kind() != "features" or number >= (self.input_dim or 0):
            raise UserError(
                f"task_config: {name}={number} is the number of a feature, and inputs "
                + (
                    f"are vectors of {self.input_dim}; the first is 0"
                    if self.kind() == "features"
                    else "are texts here; leave it out"
                )
            )
        return to_array(given, np.float64)[:, number]

    def encoded(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """What the model reads of each record; see `InputTask`. A feature is scaled, if one is."""
        examples = super().encoded(records, tokenizer, seq_len)
        if self.scale_of is not None:
            for example, record in zip(examples, records, strict=True):
                example["inputs"] = example["inputs"].copy()
                example["inputs"][:, self.scale_of] /= self.scale(record["input"])
        return examples

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """`inputs` of each record, see `encoded`, and its standardised value, `labels`.

        Of a series also `bases`, that from which a change counts, in spreads, and `scales`.
        """
        mean, spread = self._known()
        examples = self.encoded(records, tokenizer, seq_len)
        for example, record in zip(examples, records, strict=True):
            if self.change_of is not None and example["cut"]:
                raise UserError(
                    f"an input is {len(record['input'])} long, and {seq_len} are read of it; "
                    "change_of needs its last vector: raise seq_len"
                )
            example["labels"] = (self.learnt(record) - mean) / spread
            if self._of_series():
                example["bases"] = self.base(record["input"]) / spread
                example["scales"] = self.scale(record["input"])
        return examples

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed squared error of standardised values, and how many there are."""
        guesses = self.logits(model, batch)[:, 0].float()  # [B, 1] -> [B]
        wrong = guesses - batch["labels"].to(guesses)
        return (wrong * wrong).sum(), wrong.new_tensor(len(wrong))

    def measure(self, model: Any, batch: Batch) -> Measured:
        guesses = self.logits(model, batch)[:, 0].float()
        found = {"guesses": guesses, "values": batch["labels"].to(guesses)}
        if self._of_series():
            found |= {name: batch[name].to(guesses) for name in ("bases", "scales")}
        return found

    def figures(
        self, measured: Sequence[Measured], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; MAE and RMSE in the data's units; Pearson's and Spearman's correlation.

        A correlation with what does not vary is not defined: it is given as 0.
        """
        _, spread = self._known()
        guesses, values = (joined(measured, name).double() for name in ("guesses", "values"))
        wrong = guesses - values  # before what is added to both: beside that it could be lost
        loss = float(wrong.square().mean())
        wrong = spread * wrong * self._scales(measured)
        guesses, values = self._whole(measured, guesses), self._whole(measured, values)
        varies = len(values) > 1 and float(values.std()) > 0 and float(guesses.std()) > 0
        return {
            "loss": loss,
            "mae": float(wrong.abs().mean()),
            "rmse": math.sqrt(float(wrong.square().mean())),
            "pearson": float(measures.pearson_corrcoef(guesses, values)) if varies else 0.0,
            "spearman": float(measures.spearman_corrcoef(guesses, values)) if varies else 0.0,
        }

    def draw(self, measured: Sequence[Measured], path: Path) -> bool:
        from miniformer.tasks.pictures import draw_guesses

        values, guesses = (
            self._whole(measured, joined(measured, name).double()).numpy()
            for name in ("values", "guesses")
        )
        draw_guesses(values, guesses, path)
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
            self.base(given) + self.scale(given) * (mean + spread * guess)
            for given, guess in zip(inputs, guesses, strict=True)
        ]

    def _whole(self, measured: Sequence[Measured], learnt: Tensor) -> Tensor:
        """What is learnt, standardised, as values in the units of the data; float64 [N]."""
        mean, spread = self._known()
        bases = joined(measured, "bases").double() if self._of_series() else 0.0
        return spread * bases + self._scales(measured) * (mean + spread * learnt)

    def _scales(self, measured: Sequence[Measured]) -> Tensor | float:
        return joined(measured, "scales").double() if self._of_series() else 1.0

    def _of_series(self) -> bool:
        return self.change_of is not None or self.scale_of is not None

    def _known(self) -> tuple[float, float]:
        if self.mean is None or self.spread is None:
            raise UserError("mean and spread are not known yet; give them, or call fit(records)")
        return self.mean, self.spread


def _moments(numbers: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (Welford 1962: exact where numbers lie far from 0)."""
    count, mean, squares = 0, 0.0, 0.0
    for number in numbers:
        count += 1
        away = number - mean
        mean += away / count
        squares += away * (number - mean)
    return mean, math.sqrt(squares / count)
