"""Language modeling: predicts each next token of a text.

A causal Transformer (`--model decoder`) predicts every token of packed windows. A
Seq2SeqTransformer is trained as a prefix language model, see `prefix_language_modeling.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from miniformer.config import (
    GenerationConfig,
    TransformerConfig,
    UserError,
    option,
)
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.example_packing import ExamplePackingBatcher
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import Batcher
from miniformer.data.batching.packing import PackedBatcher
from miniformer.data.chat import ChatTemplate
from miniformer.data.conversations.learned import learned_bytes
from miniformer.data.conversations.messages import is_chat, text_check
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput
from miniformer.registry import plugins
from miniformer.tasks.base import BatchStats, Task, concat_batches, mean, total
from miniformer.tasks.common import chat_texts
from miniformer.tasks.common.input_encoding import ids_to_array
from miniformer.tasks.common.losses import TokenLossRecorder, example_token_losses, token_loss
from miniformer.tasks.common.record_results import RecordResults, sum_by_record
from miniformer.tasks.common.resampling import divide, sum_records
from miniformer.tasks.common.text_generation import TextGenerationTask
from miniformer.tasks.common.text_parts import (
    encode_parts,
    learned_text,
    text_parts,
    text_prompt,
)

# A subclass, for encoder-decoder models.
_PREFIX_VARIANT = "miniformer.tasks.prefix_language_modeling:PrefixLanguageModeling"
_TASKS = {  # field that a language model does not read -> flags of a task that predicts it
    "label": "classification --input_field text",
    "labels": "multilabel_classification --input_field text",
    "value": "regression --input_field text",
    "tags": "token_classification",
    "target": "seq2seq --input_field text",
}
_SAMPLE_PROMPT_CHARS = 24
_MAX_PROMPT_CHARS = 400  # of a prompt that a record has


@dataclasses.dataclass(frozen=True)
class LanguageModeling(TextGenerationTask):
    """The task of `{"text": ...}` records, plain text and conversations.

    A text may be a list of parts, `[{"text": "...", "learn": false}, {"text": "..."}]`, of which
    only some are learned. `{"prompt": ..., "completion": ...}` is a text whose prompt is not.
    `{"messages": [{"role": "user", "content": "..."}, ...]}` is a conversation, which a chat
    template renders; conversations are packed whole.

    Args:
        prepend_bos: true: BOS is prepended to prompts, since they begin a document, as
            records do; false: prompts continue running text.
        label_smoothing: fraction of each label that is spread over the vocabulary, in training.
        packing: wrapped: windows are cut from the texts in a row, without padding; best_fit: a
            window has whole texts and some padding, and only texts longer than a window are split.
        train_on: what is learned of a conversation. assistant: the contents of the assistant's
            turns and their ends; completion: all that follows the prompt, which of messages is all
            before the last answer; all: everything, and prompts of texts, too.
        chat_template: renders conversations: plain, chatml or question_answer, a file, a model
            directory, or Jinja text. null: that of init_from, else plain.
        overlong: conversations of more than seq_len tokens. drop: they are left out, and counted;
            refuse: they are an error.
    """

    name: ClassVar[str] = "language_modeling"
    models: ClassVar[tuple[str, ...]] = ("encoder", "seq2seq")
    causal: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "nats/token"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "bits_per_byte")
    per_token_loss: ClassVar[bool] = True
    token_arrays: ClassVar[tuple[str, ...]] = ("ids",)
    token_tensors: ClassVar[dict[str, str]] = {"input_ids": "segment_ids"}

    prepend_bos: bool = True
    label_smoothing: float = option(0.0, low=0.0, high=0.99)
    packing: str = option("wrapped", choices=("wrapped", "best_fit"))
    train_on: str = option("assistant", choices=("assistant", "completion", "all"))
    chat_template: str | None = None
    overlong: str = option("drop", choices=("drop", "refuse"))

    @property
    def schema(self) -> Schema:
        check = None
        if self.chat_template is not None:
            check = partial(chat_texts.template_problem, setting=self.chat_template)
        return {"text": text_check(self.train_on == "all", check)}

    def fit(self, records: Records) -> Self:
        template = self.chat_template
        if not is_chat(records[0]["text"]):
            return self
        text = chat_texts.template_text(template or chat_texts.DEFAULT_TEMPLATE)
        ChatTemplate(text)  # raises errors before a record does
        return dataclasses.replace(self, chat_template=text, packing="best_fit")

    def special_tokens(self) -> tuple[str, ...]:
        return chat_texts.special_tokens(self.chat_template)

    def for_model(self, kind: str) -> Task:
        variants: dict[str, Any] = {
            "encoder": LanguageModeling,
            "seq2seq": plugins.import_path(_PREFIX_VARIANT),
        }
        if type(self) not in variants.values() or kind not in variants:
            return super().for_model(kind)
        task: Task = variants[kind](**self.to_dict())
        return task

    def is_empty(self, record: Record) -> bool:
        text = record["text"]
        if is_chat(text):
            return not learned_bytes(text, self.train_on)
        return not (text if isinstance(text, str) else learned_text(text)).strip()

    def texts(self, record: Record) -> Iterator[str]:
        text = record["text"]
        yield from [text] if isinstance(text, str) else [part for part, _ in text_parts(text)]

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        return super().model_config({"causal": True, **overrides}, tokenizer)

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        if not config.causal:
            raise UserError(
                "model_config: causal must be true for language modeling, "
                "or the model sees its own labels"
            )
        require_null(config, ("input_dim", "input", "output_dim"), "language modeling")
        super().check(config, tokenizer)
        if tokenizer is not None and self.packing == "best_fit":
            chat_texts.require_tokens(self.chat_template, tokenizer)

    def record_warnings(self, records: Records) -> Iterator[str]:
        """A hint if the records have a field of labels, which a language model does not read."""
        label = next((name for name in _TASKS if name in records[0]), None)
        if label is not None:
            yield (
                f"note: language_modeling does not read the column {label}; to predict it, set "
                f"the task, such as --task {_TASKS[label]}"
            )

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples with `ids`, framed by BOS and EOS as the task needs them, and `bytes`.

        With parts, or whole packing, also `learn`: see `encode_parts`. With a chat template and
        whole packing, also `dropped`: see `encode_chats`.
        """
        assert tokenizer is not None
        if any(is_chat(record["text"]) for record in records):
            return chat_texts.encode_mixed(self, records, tokenizer, seq_len)
        bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
        eos = [] if bos == eos or not self.prepend_bos else eos
        wrapped = self.packing == "wrapped"
        if not wrapped or not all(isinstance(record["text"], str) for record in records):
            examples = encode_parts(
                records, tokenizer, prefix=bos, suffix=eos, running_text=wrapped
            )
            has_chats = self.chat_template is not None and not wrapped
            return [{**x, "dropped": 0} for x in examples] if has_chats else examples
        encoded = tokenizer.encode_batch([record["text"] for record in records])
        return [
            {
                "ids": ids_to_array(ids if record.get("continues") else bos + ids + eos, tokenizer),
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
        batch_size = max(1, batch_tokens // seq_len) if batch_tokens else batch_size
        options: dict[str, Any] = {"seq_len": seq_len, "batch_size": batch_size}
        options["bos_id"] = tokenizer.bos_id
        if self.packing == "best_fit":
            return ExamplePackingBatcher(**options)
        return PackedBatcher(**options, wrap=training)

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats, and the number of tokens.

        Args:
            model: a causal Transformer.
            batch: `input_ids` and `labels`, int [B, T], and optional `segment_ids`; `labels` are
                already shifted, and -100 is not predicted.
        """
        features = model.features(batch["input_ids"], segment_ids=batch.get("segment_ids"))
        return token_loss(model, features, batch["labels"], self.label_smoothing)  # [B, T, D]

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        features = model.features(batch["input_ids"], segment_ids=batch.get("segment_ids"))
        return example_token_losses(model, features, batch["labels"], self.label_smoothing)

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        loss, count, *_ = self.loss(model, batch)
        return {"loss": loss, "count": count, "bytes": batch.get("bytes", 0.0)}

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss in nats per token, perplexity, and if the byte count is known bits per byte."""
        loss = mean(batch_stats, "loss", "count")
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if n_bytes := total(batch_stats, "bytes"):
            metrics["bits_per_byte"] = total(batch_stats, "loss") / math.log(2) / n_bytes
        return metrics

    def record_step(self, model: Any, batch: Batch) -> BatchStats:
        recorder = TokenLossRecorder(model)
        return {**self.test_step(recorder, batch), **recorder.stats(batch)}

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults | None:
        """Results of each text that has a label; there are no predictions or truths.

        None for a subclass whose loss is not that of tokens.
        """
        if not all("token_losses" in stats for stats in batch_stats):
            return None
        losses = concat_batches(batch_stats, "token_losses").numpy()
        tokens = concat_batches(batch_stats, "token_records").numpy()
        indices, loss, count = sum_by_record(tokens, losses, np.ones(len(losses)))
        statistics = {"bytes": self._record_bytes(batch_stats, records, indices)}
        nothing = [None] * len(indices)
        return RecordResults(indices, nothing, nothing, loss / count, count, statistics=statistics)

    def _record_bytes(
        self, batch_stats: Sequence[BatchStats], records: Records, indices: np.ndarray
    ) -> np.ndarray:
        """UTF-8 bytes of the labels of each record, [N]."""
        texts = (record["text"] for record in records.read(indices))
        return np.array(
            [
                learned_bytes(x, self.train_on) if is_chat(x) else len(learned_text(x).encode())
                for x in texts
            ]
        )

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        loss = super().resampled_metrics(results, counts)["loss"]
        total_loss = sum_records(counts, results.losses * results.weights)
        return {
            "loss": loss,
            "perplexity": np.exp(np.minimum(loss, 700.0)),
            "bits_per_byte": divide(
                total_loss / math.log(2), sum_records(counts, results.statistics["bytes"])
            ),
        }

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
        max_length = model.config.max_seq_len - max_new_tokens
        if truncate and max_length > 0:
            rows = [row[-max_length:] for row in rows]
        return [GenerationInput(row) for row in rows]

    def encode_prompts(self, prompts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of prompts; an empty prompt is BOS alone."""
        rows = tokenizer.encode_batch(prompts)
        bos = [tokenizer.bos_id]
        return [bos + ids if self.prepend_bos or not ids else ids for ids in rows]

    def sample_prompts(self, records: Records) -> list[str]:
        text: Any = next((r["text"] for r in records if not self.is_empty(r)), "")
        if is_chat(text):
            return []
        if prompt := text_prompt(text):
            return [prompt[:_MAX_PROMPT_CHARS]]
        text = learned_text(text)
        return [text[:_SAMPLE_PROMPT_CHARS].rpartition(" ")[0] or text[:_SAMPLE_PROMPT_CHARS]]

    def default_generation_config(
        self, config: TransformerConfig, tokenizer: Tokenizer
    ) -> GenerationConfig:
        result = super().default_generation_config(config, tokenizer)
        ends = self.chat_template and chat_texts.answer_end(self.chat_template, tokenizer)
        return dataclasses.replace(result, stop_token_ids=ends) if ends else result

    def usage_snippet(self) -> str:
        return 'print(m.generate("...", max_new_tokens=64, temperature=0.8))'

    def usage_command(self, directory: str) -> str:
        if self.chat_template is not None:
            return f"chat {directory}"
        return f'generate {directory} "your prompt"'


def require_null(config: TransformerConfig, names: tuple[str, ...], task: str) -> None:
    """Raises a UserError for fields that the task does not use."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            raise UserError(f"model_config: {name} must be null for {task}, not {value}")
