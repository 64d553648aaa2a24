"""Sequence to sequence from feature vectors: a series, frames of sound, rows of an image.

source    | v1 v2 v3       vectors, standardized
target    | B d e          B: the boundary token
labels    | d e B
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Self

import numpy as np
import torch

from miniformer.config import InputError, TransformerConfig, UserError
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.bpe_dropout import BPEMerges
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput
from miniformer.tasks.common.input_encoding import check_inputs, encode_features, input_validator
from miniformer.tasks.common.standardize import feature_statistics, statistics_problems
from miniformer.tasks.seq2seq import Seq2Seq


@dataclasses.dataclass(frozen=True)
class FeatureSeq2Seq(Seq2Seq):
    """The variant of `Seq2Seq` whose sources are lists of vectors of one width."""

    text_fields: ClassVar[tuple[str, str] | None] = None
    source_kind: str | None = "features"

    def cross_check(self) -> list[str]:
        problems = [*super().cross_check(), *statistics_problems(self)]
        if self.copy_noise:
            problems.append("copy_noise is for texts, and sources are vectors here; leave it out")
        return problems

    @property
    def schema(self) -> Schema:
        return {
            "source": input_validator("features", self.input_dim),
            "target": schema.check_text,
        }

    def fit(self, records: Records) -> Self:
        """Infers the width of the vectors from the first record, and statistics from all."""
        fitted = self
        if self.input_dim is None:
            first = next(islice(iter(records), 1))["source"]
            fitted = dataclasses.replace(fitted, input_dim=len(first[0]))
        if self.standardize and self.feature_means is None:
            means, stds = feature_statistics(records.with_schema(fitted.schema), "source")
            return dataclasses.replace(fitted, feature_means=means, feature_stds=stds)
        return fitted

    def data_warnings(self) -> Iterator[str]:
        if self.standardize and self.feature_means is None:
            yield (
                "warning: features are not standardized, since the statistics of a stream are "
                "unknown; set feature_means and feature_stds in task_config"
            )

    def texts(self, record: Record) -> Iterator[str]:
        yield record["target"]

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        if self.input_dim is None:
            raise UserError("input_dim is not known; set it in task_config")
        return super().model_config({"input_dim": self.input_dim, **overrides}, tokenizer)

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        super().check(config, tokenizer)
        if tokenizer is not None and tokenizer.separate_source_tokenizer is not None:
            raise UserError("source_tokenizer is for texts, and sources are vectors; leave it out")

    def required_input_dim(self) -> int | None:
        return self.input_dim

    def encode_sources(
        self, sources: Sequence[Any], tokenizer: Tokenizer, seq_len: int
    ) -> list[tuple[Any, int]]:
        """Vectors of each source, float32 [S, input_dim], and the number of truncated ones."""
        limit = self.max_input_len or seq_len
        if self.max_source_len is not None:
            limit = min(limit, self.max_source_len)
        examples = encode_features(sources, limit, self.feature_means, self.feature_stds)
        return [(example["inputs"], example["cut"]) for example in examples]

    def source_array(self, source: Any, tokenizer: Tokenizer) -> np.ndarray:
        return np.asarray(source)

    def bpe_merges(self, tokenizer: Tokenizer) -> dict[str, BPEMerges]:
        return {"labels": BPEMerges(tokenizer)}

    def source_rows(self, batch: dict[str, Any], num_rows: int) -> list[Any]:
        source, mask = batch["source"][:num_rows], batch.get("source_mask")
        return list(source) if mask is None else [*map(torch.Tensor.__getitem__, source, mask)]

    def sample_prompts(self, records: Records) -> list[Any]:
        """None: the samples of a run show texts."""
        return []

    def is_single_input(self, value: Any) -> bool:
        """True for a list of vectors."""
        if not isinstance(value, list | tuple) or not value:
            return False
        first = value[0]
        is_vector = isinstance(first, list | tuple) and bool(first)
        return isinstance(first, dict) or (is_vector and isinstance(first[0], int | float))

    def generation_inputs(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[Any],
        *,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> list[GenerationInput]:
        if any(isinstance(prompt, str) for prompt in prompts):
            raise UserError("this model reads vectors, not texts; use predict with lists of them")
        records = check_inputs(prompts, "features", self.input_dim)
        limit = model.config.max_seq_len
        sources = self.encode_sources([record["input"] for record in records], tokenizer, limit)
        problems = {
            number: f"is {len(source) + cut} long; the model reads at most {len(source)} vectors; "
            "shorten it, or truncate it"
            for number, (source, cut) in enumerate(sources)
            if cut
        }
        if problems and not truncate:
            raise InputError(problems)
        start = [self.decoder_start_token_id(tokenizer)]
        return [GenerationInput(start, torch.from_numpy(source)) for source, _ in sources]

    def check_sources(self, inputs: Sequence[Any]) -> None:
        check_inputs(inputs, "features", self.input_dim)

    def usage_snippet(self) -> str:
        return "print(m.predict([[[0.1, ...], ...]]))"

    def usage_command(self, directory: str) -> str:
        return f"predict {directory} '{[[0.0] * (self.input_dim or 1)]}'"
