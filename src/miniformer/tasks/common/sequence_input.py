"""What classification and regression share: an input read as a whole, and one answer to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Self

from torch import Tensor

from miniformer.config import TransformerConfig, UserError, option
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn, LengthBucketBatcher
from miniformer.data.batching.loader import Batcher
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.bpe_dropout import BPEMerges, with_bpe_dropout
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import Task
from miniformer.tasks.common.input_encoding import (
    check_max_seq_len,
    encode_inputs,
    input_validator,
    marks,
)
from miniformer.tasks.common.inputs import collate_inputs, model_inputs
from miniformer.tasks.common.standardize import feature_statistics


@dataclasses.dataclass(frozen=True)
class InputTask(Task):
    """Base of the tasks of `{"input": ..., ...}` records.

    Args:
        input_kind: what an input is: text, pair (two texts) or features (vectors); null: as in the
            training data.
        bpe_dropout: chance of undoing each merge of a token, others with each pass of training
            (see `miniformer.data.tokenizers.bpe_dropout`); needs a bpe tokenizer.
        input_dim: numbers in a feature vector; null: as in the training data.
        shared_token_types: say of each token of a pair whether the other text has it, too, by token types
            2 and 3; what a model of little data can hardly find out by itself. Null: for pairs, but
            not in masked-LM, where it would tell of what is hidden (a warm start has it all the
            same: its model is that of the run), nor after `init_from`, which goes on as its model
            was trained.
        standardize: of inputs that are vectors, whether each feature is read less its mean, in
            units of its standard deviation; false: as it stands.
        feature_means, feature_stds: those of each feature, in the units of the data; null: those
            of the training data, over all vectors. A constant feature has the deviation 1.
    """

    models: ClassVar[tuple[str, ...]] = ("encoder",)
    marks_shared_tokens: ClassVar[bool] = True  # where nothing is said
    token_arrays: ClassVar[tuple[str, ...]] = ("inputs",)
    token_tensors: ClassVar[dict[str, str]] = {"inputs": "attention_mask"}

    input_kind: str | None = option(None, choices=("text", "pair", "features"))
    input_dim: int | None = option(None, low=1)
    bpe_dropout: float = option(0.0, low=0.0, high=0.99)
    shared_token_types: bool | None = None
    standardize: bool = True
    feature_means: list[float] | None = None
    feature_stds: list[float] | None = None

    def cross_check(self) -> list[str]:
        means, stds = self.feature_means, self.feature_stds
        if self.input_kind in ("text", "pair"):
            given = [
                name
                for name in ("input_dim", "feature_means", "feature_stds", "standardize")
                if getattr(self, name) not in (None, True)
            ]
            if given:
                return [f"{given[0]} is for vectors, and inputs are texts; leave it out"]
        if means is None and stds is None:
            return []
        if means is None or stds is None:
            return ["feature_means and feature_stds need each other; give both or none"]
        if not self.standardize:
            return ["feature_means and feature_stds have no effect with standardize=false"]
        problems = []
        if len(means) != len(stds) or self.input_dim not in (None, len(means)):
            of = f", and input_dim is {self.input_dim}" if self.input_dim is not None else ""
            problems.append(
                f"feature_means has {len(means)} numbers and feature_stds {len(stds)}{of}; each "
                "needs one for each feature"
            )
        if not all(map(math.isfinite, [*means, *stds])) or not all(std > 0 for std in stds):
            problems.append("feature_means must be finite, and feature_stds finite and above 0")
        return problems

    @property
    def schema(self) -> Schema:
        return {"input": input_validator(self.input_kind, self.input_dim)}

    def fit(self, records: Records) -> Self:
        """Learns of the first record what an input is, and of all of them how features are scaled.

        Raises:
            RecordError: an input is of another kind or width than the first, or than was given.
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
                "warning: features are read as they stand, since nothing is known of a stream "
                "before it ends; give feature_means and feature_stds in task_config"
            )

    def resolved_input_kind(self) -> str:
        """What an input is: text, pair or features."""
        if self.input_kind is None:
            raise UserError("input_kind is not known yet; give it, or call fit(records)")
        return self.input_kind

    def num_outputs(self) -> int | None:
        """Outputs of the model; None: one for each token of the vocabulary."""
        raise NotImplementedError

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
        config = {"output_dim": self.num_outputs(), **overrides}
        if self.resolved_input_kind() == "features":
            config = {"input_dim": self.input_dim, **config}
        if self.resolved_input_kind() == "pair":
            config = {"token_types": self.num_token_types(), **config}
        return super().model_config(config, tokenizer)

    def num_token_types(self) -> int:
        """Token types of pairs."""
        return 4 if self.should_mark_shared() else 2

    def should_mark_shared(self) -> bool:
        """Whether tokens that both texts of a pair have are marked."""
        if self.shared_token_types is None:
            return self.marks_shared_tokens and self.resolved_input_kind() == "pair"
        return self.shared_token_types

    def encode_inputs(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """What the model reads of each record; see `encode_inputs`."""
        scales = None
        if self.feature_means is not None and self.feature_stds is not None:
            scales = (self.feature_means, self.feature_stds)
        return encode_inputs(
            records,
            self.resolved_input_kind(),
            tokenizer,
            seq_len,
            shared_token_types=self.should_mark_shared(),
            feature_scales=scales,
        )

    def can_truncate(self) -> bool:
        """Whether an input that is too long may be cut at its end."""
        return True

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        for name, wanted in (("output_dim", self.num_outputs()), ("input_dim", self.input_dim)):
            if getattr(config, name) != wanted:
                raise UserError(
                    f"model_config: {name} must be {'null' if wanted is None else wanted} for this "
                    f"data, not {getattr(config, name)}; leave it out"
                )
        if self.bpe_dropout and tokenizer is None:
            raise UserError("task_config: bpe_dropout is for texts, and inputs are vectors here")
        if self.bpe_dropout and tokenizer is not None:
            BPEMerges(tokenizer)  # refuses what is no bpe
        if self.shared_token_types and self.resolved_input_kind() != "pair":
            raise UserError("task_config: shared_token_types is for pairs of texts; leave it out")
        if tokenizer is not None and self.reads_text():
            texts, inputs = (2, "pairs") if self.resolved_input_kind() == "pair" else (1, "texts")
            check_max_seq_len(config, marks(self.resolved_input_kind(), tokenizer) + texts, inputs)
        types, marked = config.token_types, self.should_mark_shared()
        few = marked if types is None else types < self.num_token_types()
        if self.resolved_input_kind() == "pair" and few:
            raise UserError(
                f"model_config: token_types must be {self.num_token_types()}{'' if marked else ' or null'} "
                f"for pairs of texts, not {'null' if types is None else types}; leave it out"
                + (", or set shared_token_types=false in task_config" if marked else "")
            )
        super().check(config, tokenizer)

    def batcher(
        self,
        tokenizer: Tokenizer | None,
        *,
        seq_len: int,
        batch_size: int,
        batch_tokens: int | None,
        training: bool,
    ) -> Batcher:
        return LengthBucketBatcher(
            self.apply_bpe_dropout(collate_inputs, tokenizer, seq_len),
            length_columns=("inputs",),
            batch_size=batch_size,
            batch_tokens=batch_tokens,
        )

    def apply_bpe_dropout(
        self, collate: CollateFn, tokenizer: Tokenizer | None, seq_len: int
    ) -> CollateFn:
        """A `collate` with the task's `bpe_dropout`."""
        if tokenizer is None or not self.bpe_dropout:
            return collate
        beside = ("token_types",) if self.resolved_input_kind() == "pair" else ()
        merges = {"inputs": BPEMerges(tokenizer)}
        return with_bpe_dropout(
            collate, self.bpe_dropout, merges=merges, aligned_columns=beside, max_length=seq_len
        )

    def usage_snippet(self) -> str:
        shown = {"text": '"..."', "pair": '["...", "..."]', "features": "[[0.1, ...], ...]"}
        return f"print(m.predict([{shown[self.resolved_input_kind()]}]))"

    def usage_command(self, directory: str) -> str:
        shown = {
            "text": '"your input"',
            "pair": """'["first text", "second text"]'""",
            "features": f"'{[[0.0] * (self.input_dim or 1)]}'",
        }
        return f"predict {directory} {shown[self.resolved_input_kind()]}"

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """The model's answers, [B, outputs]."""
        out: Tensor = model.classify(**model_inputs(model, batch))
        return out
