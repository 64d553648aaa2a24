"""Base class of classification, regression, embedding and masked LM: one input, one output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from miniformer.config import (
    GenerationConfig,
    InputError,
    TransformerConfig,
    UserError,
    option,
)
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.bpe_dropout import BPEMerges, with_bpe_dropout
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import Task
from miniformer.tasks.common.input_encoding import (
    NON_LABEL_KEYS,
    check_inputs,
    check_max_seq_len,
    collate_inputs,
    encode_features,
    encode_inputs,
    input_validator,
    model_inputs,
    num_special_tokens,
)
from miniformer.tasks.common.standardize import feature_statistics, statistics_problems

_ENCODE_BATCH_SIZE = 256  # enough for a tokenizer to encode in parallel
_BATCH_TOKENS = 8192  # of inputs predicted at once, padding included
_MAX_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class InputTask(Task):
    """Base class of the tasks of `{"input": ..., ...}` records.

    Args:
        input_kind: text, pair (two texts) or features (vectors); null: as in the training data.
        bpe_dropout: probability of undoing each BPE merge, drawn anew in each epoch (see
            `miniformer.data.tokenizers.bpe_dropout`); needs a bpe tokenizer.
        input_dim: width of feature vectors; null: as in the training data.
        max_input_len: maximum vectors or tokens of an input; null: seq_len, or as many as the
            model's `input` makes seq_len vectors of.
        shared_token_types: mark tokens of a pair that the other text contains, too, by token types
            2 and 3, which a model can hardly learn from little data.
        standardize: standardize each feature of vector inputs; false: use raw features.
        feature_means, feature_stds: statistics of each feature, in the units of the data; null:
            those of the training data, over all vectors. A constant feature has std 1.
    """

    models: ClassVar[tuple[str, ...]] = ("encoder",)
    token_arrays: ClassVar[tuple[str, ...]] = ("inputs",)
    token_tensors: ClassVar[dict[str, str]] = {"inputs": "attention_mask"}

    input_kind: str | None = option(None, choices=("text", "pair", "features"))
    input_dim: int | None = option(None, low=1)
    max_input_len: int | None = option(None, low=1)
    bpe_dropout: float = option(0.0, low=0.0, high=0.99)
    shared_token_types: bool = False
    standardize: bool = True
    feature_means: list[float] | None = None
    feature_stds: list[float] | None = None

    def cross_check(self) -> list[str]:
        if self.input_kind in ("text", "pair"):
            given = [
                name
                for name in ("input_dim", "feature_means", "feature_stds", "standardize")
                if getattr(self, name) not in (None, True)
            ]
            if given:
                return [f"{given[0]} is for vectors, and inputs are texts; leave it out"]
        return statistics_problems(self)

    @property
    def schema(self) -> Schema:
        return {"input": input_validator(self.input_kind, self.input_dim)}

    def fit(self, records: Records) -> Self:
        """Infers the input kind from the first record, and feature statistics from all records.

        Raises:
            RecordError: an input differs in kind or width from the first, or from the options.
        """
        first = next(islice(iter(records), 1))["input"]
        kind = schema.input_kind(first)
        width = len(first[0]) if kind == "features" else None
        fitted = dataclasses.replace(
            self, input_kind=self.input_kind or kind, input_dim=self.input_dim or width
        )
        if kind == "features" and self.standardize and self.feature_means is None:
            means, stds = feature_statistics(records.with_schema(fitted.schema))
            fitted = dataclasses.replace(fitted, feature_means=means, feature_stds=stds)
        return fitted

    def data_warnings(self) -> Iterator[str]:
        if (
            self.resolved_input_kind() == "features"
            and self.standardize
            and self.feature_means is None
        ):
            yield (
                "warning: features are not standardized, since the statistics of a stream are "
                "unknown; set feature_means and feature_stds in task_config"
            )

    def resolved_input_kind(self) -> str:
        """Kind of the inputs: text, pair or features."""
        if self.input_kind is None:
            raise UserError(
                "input_kind is not known yet; set it in task_config, or call fit(records)"
            )
        return self.input_kind

    def num_outputs(self) -> int | None:
        """Number of model outputs; None: the vocabulary size."""
        raise NotImplementedError

    def head_fields(self) -> dict[str, Any]:
        """Further config fields of the head."""
        return {}

    def reads_text(self) -> bool:
        return self.resolved_input_kind() != "features"

    def texts(self, record: Record) -> Iterator[str]:
        if isinstance(record["input"], str):
            yield record["input"]
        elif isinstance(record["input"][0], str):
            yield from record["input"]

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        config = {"output_dim": self.num_outputs(), **self.head_fields(), **overrides}
        if self.resolved_input_kind() == "features":
            config = {"input_dim": self.input_dim, **config}
        if self.resolved_input_kind() == "pair":
            config = {"token_types": self.num_token_types(), **config}
        return super().model_config(config, tokenizer)

    def num_token_types(self) -> int:
        """Number of token types of pairs."""
        return 4 if self.shared_token_types else 2

    def encode_inputs(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Encodes the inputs of records; see `input_encoding.encode_inputs`."""
        seq_len, kind = self.max_input_len or seq_len, self.resolved_input_kind()
        if kind == "features":
            values = [record["input"] for record in records]
            return encode_features(values, seq_len, self.feature_means, self.feature_stds)
        return encode_inputs(
            records, kind, tokenizer, seq_len, shared_token_types=self.shared_token_types
        )

    def can_truncate(self) -> bool:
        """True if inputs that are too long may be truncated at the end."""
        return True

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        fields = {"output_dim": self.num_outputs(), "input_dim": self.input_dim}
        for name, required in {**fields, **self.head_fields()}.items():
            if getattr(config, name) != required:
                value = "null" if required is None else required
                raise UserError(
                    f"model_config: {name} must be {value} for this data, "
                    f"not {getattr(config, name)}; leave it out"
                )
        if self.bpe_dropout:
            if tokenizer is None:
                raise UserError(
                    "task_config: bpe_dropout is for texts, and inputs are vectors here"
                )
            BPEMerges(tokenizer)  # raises unless bpe
        if self.shared_token_types and self.resolved_input_kind() != "pair":
            raise UserError("task_config: shared_token_types is for pairs of texts; leave it out")
        if tokenizer is not None and self.reads_text():
            kind = self.resolved_input_kind()
            texts, inputs = (2, "pairs") if kind == "pair" else (1, "texts")
            check_max_seq_len(config, num_special_tokens(kind, tokenizer) + texts, inputs)
        types, marked = config.token_types, self.shared_token_types
        too_few = marked if types is None else types < self.num_token_types()
        if self.resolved_input_kind() == "pair" and too_few:
            allowed = f"{self.num_token_types()}{'' if marked else ' or null'}"
            raise UserError(
                f"model_config: token_types must be {allowed} for pairs of texts, not "
                f"{'null' if types is None else types}; leave it out"
                + (", or set shared_token_types=false in task_config" if marked else "")
            )
        super().check(config, tokenizer)

    def collate_fn(self, tokenizer: Tokenizer | None, *, seq_len: int, training: bool) -> CollateFn:
        return self.apply_bpe_dropout(collate_inputs, tokenizer, seq_len)

    def apply_bpe_dropout(
        self, collate: CollateFn, tokenizer: Tokenizer | None, seq_len: int
    ) -> CollateFn:
        """Wraps `collate` with the task's `bpe_dropout`."""
        if tokenizer is None or not self.bpe_dropout:
            return collate
        aligned = ("token_types",) if self.resolved_input_kind() == "pair" else ()
        merges = {"inputs": BPEMerges(tokenizer)}
        return with_bpe_dropout(
            collate, self.bpe_dropout, merges=merges, aligned_columns=aligned, max_length=seq_len
        )

    def usage_snippet(self) -> str:
        example = {"text": '"..."', "pair": '["...", "..."]', "features": "[[0.1, ...], ...]"}
        return f"print(m.predict([{example[self.resolved_input_kind()]}]))"

    def usage_command(self, directory: str) -> str:
        example = {
            "text": '"your input"',
            "pair": """'["first text", "second text"]'""",
            "features": f"'{[[0.0] * (self.input_dim or 1)]}'",
        }
        return f"predict {directory} {example[self.resolved_input_kind()]}"

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """The model's outputs, [B, outputs]."""
        out: Tensor = model.classify(**model_inputs(model, batch))
        return out

    def wide_inputs(self, model: Any, batch: Batch) -> dict[str, Tensor | None]:
        return model_inputs(model, batch)

    def wide_labels(self, batch: Batch) -> Batch:
        """The labels of a batch, and the first token or vector of its inputs."""
        labels = {name: value for name, value in batch.items() if name not in NON_LABEL_KEYS}
        return {**labels, "inputs": batch["inputs"][:, :1]}

    def is_single_input(self, value: Any) -> bool:
        """True for a text; of a model for pairs, two texts; of one for vectors, a list of them."""
        if isinstance(value, str) or not isinstance(value, list | tuple) or not value:
            return isinstance(value, str)
        first, kind = value[0], self.resolved_input_kind()
        if kind == "features":
            is_vector = isinstance(first, list | tuple) and bool(first)
            return isinstance(first, dict) or (is_vector and isinstance(first[0], int | float))
        return kind == "pair" and len(value) == 2 and all(isinstance(v, str) for v in value)

    def predict(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        inputs: Sequence[Any],
        options: GenerationConfig,
        *,
        truncate: bool = False,
        batch_size: int | None = None,
    ) -> list[Any]:
        """For each input what `format_outputs` makes of the model's output."""
        outputs = self.predict_outputs(
            model, tokenizer, inputs, truncate=truncate, batch_size=batch_size
        )
        return [] if outputs is None else self.format_outputs(outputs, inputs)

    def format_outputs(self, outputs: Tensor, inputs: Sequence[Any]) -> list[Any]:
        """Predictions in plain types.

        Args:
            outputs: of the model, [B, outputs].
            inputs: their inputs, as given by the user.
        """
        raise NotImplementedError

    def predict_outputs(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        inputs: Sequence[Any],
        *,
        truncate: bool = False,
        batch_size: int | None = None,
        output_fn: Callable[[Any, Batch], Tensor] | None = None,
    ) -> Tensor | None:
        """The model's outputs for a user's inputs, [N, outputs]; None: there are no inputs.

        All inputs are encoded and checked before the model runs.

        Args:
            model: the model.
            tokenizer: None: the task reads no text.
            inputs: in the format of records.
            truncate: truncate inputs that are too long, as training does.
            batch_size: inputs at once; None: by their lengths.
            output_fn: computes the output of a batch, [B, ...]; None: `logits`.

        Raises:
            InputError: inputs differ in kind from the training data, or are longer than
                max_seq_len.
        """
        limit = self.max_input_len or model.config.max_seq_len
        records = check_inputs(inputs, self.resolved_input_kind(), self.input_dim)
        examples: list[Example] = []
        for first in range(0, len(records), _ENCODE_BATCH_SIZE):
            batch_of_records = records[first : first + _ENCODE_BATCH_SIZE]
            examples += self.encode_inputs(batch_of_records, tokenizer, limit)
        if not (truncate and self.can_truncate()):
            hint = ", or truncate it" if self.can_truncate() else ""
            too_long = {
                number: f"is {len(example['inputs']) + example['cut']} long; the model reads at "
                f"most {limit}; shorten it{hint}"
                for number, example in enumerate(examples)
                if example["cut"]
            }
            if too_long:
                raise InputError(too_long)
        device, results = next(model.parameters()).device, dict[int, Tensor]()
        with torch.inference_mode():
            for rows in _batches_by_length(examples, batch_size):
                batch = collate_inputs([examples[row] for row in rows])
                batch = {name: value.to(device) for name, value in batch.items()}
                outputs = (output_fn or self.logits)(model, batch).cpu()
                results.update(zip(rows, outputs, strict=True))
        return torch.stack([results[row] for row in range(len(examples))]) if results else None


def _batches_by_length(examples: list[Example], batch_size: int | None) -> Iterator[list[int]]:
    """Numbers of the examples of each batch: similar lengths, so that there is little padding."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]["inputs"]))
    batch: list[int] = []
    for row in order:  # the last of a batch is its longest
        size = _BATCH_TOKENS // max(1, len(examples[row]["inputs"]))
        if batch and len(batch) >= (batch_size or min(size, _MAX_BATCH_SIZE)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
