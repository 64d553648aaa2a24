"""Language modelling: predict each next token of a text (causal, `--model encoder`).

Letters: B batch, T length, N labelled positions, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from miniformer.config import TransformerConfig, UserError
from miniformer.data.fields import Schema
from miniformer.data.packing import IGNORED
from miniformer.data.records import TEXT_SCHEMA, Record
from miniformer.data.tokenizer import Tokenizer
from miniformer.model.transformer import Transformer


class LanguageModeling:
    """The task of `{"text": ...}` records and plain text."""

    name = "language_modeling"
    schema: Schema = TEXT_SCHEMA

    def check(self, config: TransformerConfig, tokenizer: Tokenizer) -> None:
        """Refuses a model that cannot learn this task.

        Raises:
            UserError: it is not causal, takes no token ids, or its vocabulary is smaller than the
                tokenizer's.
        """
        if not config.causal:
            raise UserError(
                "model_config: causal must be true for language modelling, "
                "or the model sees its own labels"
            )
        for name in ("input_dim", "output_dim"):
            if getattr(config, name) is not None:
                value = getattr(config, name)
                raise UserError(
                    f"model_config: {name} must be null for language modelling, not {value}"
                )
        if config.vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"model_config: vocab_size={config.vocab_size} is smaller than the tokenizer's "
                f"{tokenizer.vocab_size} ids; leave vocab_size out to take the tokenizer's"
            )

    def encode(self, records: Sequence[Record], tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of each record; the boundary token begins those that begin a document."""
        encoded = tokenizer.encode_batch([record["text"] for record in records])
        return [
            ids if record.get("continues") else [tokenizer.boundary_id, *ids]
            for record, ids in zip(records, encoded, strict=True)
        ]

    def loss(self, model: Transformer, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats, and how many tokens it sums over.

        Args:
            model: a causal Transformer.
            batch: `input_ids` and `labels`, int [B, T], and maybe `segment_ids`; `labels` is
                already shifted, and where it is -100 nothing is predicted.
        """
        features = model.features(
            batch["input_ids"], segment_ids=batch.get("segment_ids")
        )  # [B, T, D]
        labels = batch["labels"]
        kept = labels != IGNORED
        if not bool(kept.all()):  # the head need not see what is not predicted
            features, labels = features[kept], labels[kept]  # [N, D], [N]
        loss = model.cross_entropy(features.flatten(0, -2), labels.flatten())
        return loss, loss.new_tensor(labels.numel())

    def metrics(
        self, loss_sum: float, count: float, bytes_per_token: float | None = None
    ) -> dict[str, float]:
        """Loss in nats a token, perplexity, and where known bits per byte of text."""
        loss = loss_sum / count
        figures = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if bytes_per_token is not None:
            figures["bits_per_byte"] = loss / math.log(2) / bytes_per_token
        return figures

    def settings(self, *, plain_text: bool) -> dict[str, Any]:
        """What a model directory must remember to use the model as it was trained."""
        # A record is a document, and a prompt begins one; running text has no beginnings to speak
        # of.
        return {"task": self.name, "prompt_begins_document": not plain_text}
