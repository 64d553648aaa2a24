"""Language modelling: predict each next token of a text.

A causal Transformer (`--model decoder`) predicts every token of packed windows. A
Seq2SeqTransformer learns it as a prefix language model: see `prefix_language_modeling`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from miniformer.config import TransformerConfig, UserError, option
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import Batcher
from miniformer.data.batching.packing import PackedBatcher
from miniformer.data.reading.records import TEXT_SCHEMA, Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput
from miniformer.tasks.base import BatchStats, Task, mean, token_loss, total
from miniformer.tasks.common.input_encoding import ids_to_array
from miniformer.tasks.common.text_generation import TextGenerationTask

_SAMPLE_PROMPT_CHARS = 24  # of a text, for the model to go on from


@dataclasses.dataclass(frozen=True)
class LanguageModeling(TextGenerationTask):
    """The task of `{"text": ...}` records and plain text.

    Args:
        prepend_bos: whether a prompt is the beginning of a document, as a record is;
            running text has no beginnings to speak of. Null: as in the training data.
        label_smoothing: share of each label that is spread over the vocabulary, in training.
    """

    name: ClassVar[str] = "language_modeling"
    models: ClassVar[tuple[str, ...]] = ("encoder", "seq2seq")
    loss_unit: ClassVar[str] = "nats/token"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "bits_per_byte")
    per_token_loss: ClassVar[bool] = True
    token_arrays: ClassVar[tuple[str, ...]] = ("ids",)
    token_tensors: ClassVar[dict[str, str]] = {"input_ids": "segment_ids"}

    prepend_bos: bool | None = None
    label_smoothing: float = option(0.0, low=0.0, high=0.99)

    @property
    def schema(self) -> Schema:
        return TEXT_SCHEMA

    def for_model(self, kind: str) -> Task:
        from miniformer.tasks.prefix_lm import PrefixLanguageModeling

        chosen = PrefixLanguageModeling if kind == "seq2seq" else LanguageModeling
        return chosen(**self.to_dict()) if kind in self.models else super().for_model(kind)

    def fit(self, records: Records) -> Self:
        if self.prepend_bos is not None:
            return self
        return dataclasses.replace(self, prepend_bos=not records.is_plain_text)

    def prepends_bos(self) -> bool:
        """Whether a prompt is the beginning of a document; so it is where nothing is known."""
        return self.prepend_bos is not False

    def is_empty(self, record: Record) -> bool:
        return not record["text"].strip()

    def texts(self, record: Record) -> Iterator[str]:
        yield record["text"]

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        return super().model_config({"causal": True, **overrides}, tokenizer)

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        if not config.causal:
            raise UserError(
                "model_config: causal must be true for language modelling, "
                "or the model sees its own labels"
            )
        require_null(config, ("input_dim", "output_dim"), "language modelling")
        super().check(config, tokenizer)

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """`ids` of each record, begun by the boundary where a document begins, and its `bytes`."""
        assert tokenizer is not None
        encoded = tokenizer.encode_batch([record["text"] for record in records])
        begin, end = [tokenizer.bos_id], [tokenizer.eos_id]
        end = [] if begin == end or not self.prepends_bos() else end
        return [
            {
                "ids": ids_to_array(
                    ids if record.get("continues") else begin + ids + end, tokenizer
                ),
                "bytes": len(record["text"].encode()),
            }
            for record, ids in zip(records, encoded, strict=True)
        ]

    def batcher(
        self,
        tokenizer: Tokenizer | None,
        *,
        seq_len: int,
        batch_size: int,
        batch_tokens: int | None,
        training: bool,
    ) -> Batcher:
        assert tokenizer is not None
        return PackedBatcher(
            seq_len=seq_len,
            batch_size=max(1, batch_tokens // seq_len) if batch_tokens else batch_size,
            bos_id=tokenizer.bos_id,
            wrap=training,
        )

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats, and how many tokens it sums over.

        Args:
            model: a causal Transformer.
            batch: `input_ids` and `labels`, int [B, T], and maybe `segment_ids`; `labels` is
                already shifted, and where it is -100 nothing is predicted.
        """
        features = model.features(batch["input_ids"], segment_ids=batch.get("segment_ids"))
        return token_loss(model, features, batch["labels"], self.label_smoothing)  # [B, T, D]

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        loss, count = self.loss(model, batch)
        return {"loss": loss, "count": count, "bytes": batch.get("bytes", 0.0)}

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss in nats a token, perplexity, and where known bits per byte of text."""
        loss = mean(batch_stats, "loss", "count")
        figures = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if n_bytes := total(batch_stats, "bytes"):
            figures["bits_per_byte"] = total(batch_stats, "loss") / math.log(2) / n_bytes
        return figures

    def generation_inputs(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> list[GenerationInput]:
        rows = self.encode_prompts(prompts, tokenizer)
        room = model.config.max_seq_len - max_new_tokens
        if truncate and room > 0:
            rows = [row[-room:] for row in rows]
        return [GenerationInput(row) for row in rows]

    def encode_prompts(self, prompts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of prompts; an empty one begins a document."""
        rows = tokenizer.encode_batch(prompts)
        begin = [tokenizer.bos_id]
        return [begin + ids if self.prepends_bos() or not ids else ids for ids in rows]

    def sample_prompts(self, records: Records) -> list[str]:
        text = next((r["text"] for r in records if r["text"].strip()), "")
        return [text[:_SAMPLE_PROMPT_CHARS].rpartition(" ")[0] or text[:_SAMPLE_PROMPT_CHARS]]

    def usage_snippet(self) -> str:
        return 'print(m.generate("...", max_new_tokens=64, temperature=0.8))'

    def usage_command(self, directory: str) -> str:
        return f'generate {directory} "your prompt"'


def require_null(config: TransformerConfig, names: tuple[str, ...], task: str) -> None:
    """Refuses fields that a task has no use for."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            raise UserError(f"model_config: {name} must be null for {task}, not {value}")
