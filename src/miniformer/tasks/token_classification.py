"""Token classification: predicts a tag for each token of an input, such as names or word classes.

    tokens, tags -> windows of token ids -> features -> vector of each word -> head, loss
    log-probabilities -> valid tags -> spans -> F1

Letters: B batch, T token ids, W words of a row, D width, C classes, N words of several batches.
The tokens of a record are called words here, unlike those of the tokenizer.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.config import (
    GenerationConfig,
    NoEffectWarning,
    TransformerConfig,
    UserError,
    option,
)
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.reading.records import Record, Records
from miniformer.data.tokenizers.bpe_dropout import BPEMerges, with_bpe_dropout
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, mean
from miniformer.tasks.common.input_encoding import (
    check_max_seq_len,
    model_inputs,
    num_special_tokens,
)
from miniformer.tasks.common.record_results import RecordResults, confusion_matrix
from miniformer.tasks.tagging.answers import is_single_input, make_answer, split_inputs
from miniformer.tasks.tagging.predictions import word_stats
from miniformer.tasks.tagging.results import (
    counts_table,
    make_results,
    resampled_tag_metrics,
    tag_counts,
)
from miniformer.tasks.tagging.span_metrics import (
    OUTSIDE_BIASES,
    count_spans,
    precision_recall_f1,
    select_outside_bias,
)
from miniformer.tasks.tagging.tag_task import TagTask
from miniformer.tasks.tagging.tagged_words import TaggedWords
from miniformer.tasks.tagging.viterbi import TagConstraint
from miniformer.tasks.tagging.word_encoding import collate_words, encode_tokens, pooling_weights

_BATCH_SIZE = 32  # windows predicted at once
_MAX_REPORT_CLASSES = 60  # rows of the table in the model card


@dataclasses.dataclass(frozen=True)
class TokenClassification(TagTask):
    """The task of `{"tokens": [...], "tags": [...]}` records.

    Args:
        valid_predictions: predict the most probable tags among the sequences that the scheme
            allows; false: the most probable tag of each token.
        outside_bias: what the log-probability of the tag O is lowered by in predictions, so that
            rare spans are predicted; null: fitted to each validation, for the highest span F1.
        strict_spans: spans of metrics and entities are those of seqeval's strict mode.
        word_pooling: the vector of a token of several subwords or characters: that of the first or
            last of them, or their mean.
        label_smoothing: fraction of each tag that is spread over all classes, in training.
        bpe_dropout: probability of undoing each BPE merge, drawn anew in each epoch (see
            `miniformer.data.tokenizers.bpe_dropout`); needs a bpe tokenizer.
        classes, scheme, check_tags, class_counts: see `TagTask`.
    """

    name: ClassVar[str] = "token_classification"
    models: ClassVar[tuple[str, ...]] = ("encoder",)
    loss_unit: ClassVar[str] = "nats/token"
    maximize: ClassVar[frozenset[str]] = frozenset(
        {"span_f1", "span_precision", "span_recall", "accuracy", "macro_f1"}
    )
    supports_wide_head: ClassVar[bool] = True
    token_arrays: ClassVar[tuple[str, ...]] = ("inputs",)
    token_tensors: ClassVar[dict[str, str]] = {"inputs": "attention_mask"}

    valid_predictions: bool = True
    outside_bias: float | None = option(None, low=0.0)
    strict_spans: bool = False
    word_pooling: str = option("mean", choices=("first", "last", "mean"))
    label_smoothing: float = option(0.0, low=0.0, high=0.99)
    bpe_dropout: float = option(0.0, low=0.0, high=0.99)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """Metrics of the scheme, the most informative first; of any scheme before `fit`."""
        spans = ("span_f1", "span_precision", "span_recall")
        return (*(() if self.has_spans is False else spans), "accuracy", "macro_f1", "loss")

    @cached_property
    def _constraint(self) -> TagConstraint | None:
        """Valid transitions of predictions; None: predictions are independent of each other."""
        if not (self.has_spans and self.valid_predictions):
            return None
        return TagConstraint(self.require_classes(), self.resolved_scheme)

    def texts(self, record: Record) -> Iterator[str]:
        # With a space in front, as `encode_words` encodes each word.
        yield " " + " ".join(record["tokens"])

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        config = {"output_dim": len(self.require_classes()), **overrides}
        return super().model_config(config, tokenizer)

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        for name, required in (("output_dim", len(self.require_classes())), ("input_dim", None)):
            if getattr(config, name) != required:
                raise UserError(
                    f"model_config: {name} must be {'null' if required is None else required} for "
                    f"this data, not {getattr(config, name)}; leave it out"
                )
        assert tokenizer is not None
        if self.bpe_dropout:
            BPEMerges(tokenizer)  # raises unless bpe
        check_max_seq_len(config, num_special_tokens("text", tokenizer) + 1, "words")
        super().check(config, tokenizer)

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples of `encode_tokens`, and `labels`, the class index of each predicted word."""
        assert tokenizer is not None
        indices = {tag: index for index, tag in enumerate(self.require_classes())}
        windows = encode_tokens([record["tokens"] for record in records], tokenizer, seq_len)
        examples = []
        for record, record_windows in zip(records, windows, strict=True):
            labels = np.array([indices[tag] for tag in record["tags"]], dtype=np.int32)
            for window in record_windows:
                last = len(labels) - window["words_after"]
                examples.append({**window, "labels": labels[window["first_word"] : last]})
        return examples

    def collate_fn(self, tokenizer: Tokenizer | None, *, seq_len: int, training: bool) -> CollateFn:
        if tokenizer is None or not self.bpe_dropout:
            return collate_words
        merges = {"inputs": BPEMerges(tokenizer)}
        return with_bpe_dropout(
            collate_words,
            self.bpe_dropout,
            merges=merges,
            aligned_columns=("word_ids",),
            max_length=seq_len,
        )

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Logits of each word, float [B, W, C]."""
        features = model.features(**model_inputs(model, batch))  # [B, T, D]
        weights = pooling_weights(
            batch["word_starts"], batch["word_lengths"], features.shape[1], self.word_pooling
        )
        out: Tensor = model.logits(weights.to(features) @ features)
        if model.wide_head is None:
            return out
        mixed: Tensor = model.add_wide_head(out, self.wide_inputs(model, batch))
        return mixed

    def wide_inputs(self, model: Any, batch: Batch) -> dict[str, Tensor | None]:
        """Hashes of the words, and the position of the predicted ones among them."""
        return {name: batch[name] for name in ("word_hashes", "context_before", "word_lengths")}

    def wide_labels(self, batch: Batch) -> Batch:
        """Each predicted word as a row of one word, for `FixedOutputs`."""
        labels = batch["labels"][batch["word_lengths"] > 0][:, None]
        zeros = torch.zeros_like(labels)
        return {
            "inputs": zeros, "word_starts": zeros, "word_lengths": zeros + 1, "labels": labels,
        }  # fmt: skip

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats of the words' tags, and their number."""
        smoothing = self.label_smoothing if model.training else 0.0
        return self._cross_entropy(self.logits(model, batch), batch["labels"], smoothing)

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        losses = F.cross_entropy(
            self.logits(model, batch).float().transpose(1, 2),  # [B, C, W]
            batch["labels"],
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=self.label_smoothing if model.training else 0.0,
        )
        return losses.sum(1)

    def _cross_entropy(
        self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        return loss, (labels != IGNORE_INDEX).sum()

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        logits = self.logits(model, batch)
        loss, count = self._cross_entropy(logits, batch["labels"])
        return {"loss": loss, "count": count, **self._word_stats(logits, batch)}

    def _word_stats(self, logits: Tensor, batch: Batch) -> BatchStats:
        """Statistics of each word of a batch; see `word_stats`."""
        is_fitted = self.outside_bias is None and self.has_spans and "labels" in batch
        biases = OUTSIDE_BIASES if is_fitted else (self.outside_bias or 0.0,)
        return word_stats(logits, batch, self.require_classes(), self._constraint, biases)

    def fit_to_validation(self, batch_stats: Sequence[BatchStats]) -> Self:
        """The task with the `outside_bias` of the highest span F1, unless it is given.

        It is 0 if the gain may be one of chance (see `select_outside_bias`).
        """
        if self.outside_bias is not None or not self.has_spans or not batch_stats:
            return self
        counts = [
            self._span_counts(self._tagged_words(batch_stats, column)).sum(1)
            for column in range(len(OUTSIDE_BIASES))
        ]
        return dataclasses.replace(self, outside_bias=select_outside_bias(np.stack(counts)))

    def _tagged_words(self, stats: Sequence[BatchStats], column: int | None = None) -> TaggedWords:
        """Words of batches; `column`: with the predictions of this item of `OUTSIDE_BIASES`."""
        if column is None and self.outside_bias and "biased_predictions" in stats[0]:
            column = OUTSIDE_BIASES.index(self.outside_bias)
        if column is not None:
            stats = [
                {**batch, "predictions": batch["biased_predictions"][:, column].long()}
                for batch in stats
            ]
        scheme = None if self._constraint is None else self.resolved_scheme
        return TaggedWords.from_stats(stats, self.require_classes(), scheme)

    def _span_counts(self, tagged: TaggedWords) -> np.ndarray:
        """Correct, predicted and true spans by sequence and type, int64 [S, types, 3]."""
        assert tagged.labels is not None
        return count_spans(
            tagged.tags(tagged.labels),
            tagged.tags(tagged.predictions),
            self.resolved_scheme,
            self.span_types(),
            strict=self.strict_spans,
        )

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss; accuracy and macro F1 of tags; precision, recall and F1 of all spans."""
        tagged = self._tagged_words(batch_stats)
        from torchmetrics.functional.classification import multiclass_f1_score

        predictions, labels = (torch.from_numpy(x) for x in (tagged.predictions, tagged.labels))
        metrics = {
            "loss": mean(batch_stats, "loss", "count"),
            "accuracy": float((predictions == labels).float().mean()),
            "macro_f1": float(
                multiclass_f1_score(predictions, labels, len(tagged.classes), "macro")
            ),
        }
        if self.has_spans:
            names = ("span_precision", "span_recall", "span_f1")
            values = precision_recall_f1(self._span_counts(tagged).sum((0, 1)))
            metrics |= {name: float(value) for name, value in zip(names, values, strict=True)}
        return metrics

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults:
        """Results of each record; see `make_results`."""
        tagged = self._tagged_words(batch_stats)
        spans = self._span_counts(tagged) if self.has_spans else None
        return make_results(tagged, self.span_types(), spans)

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        return resampled_tag_metrics(results, counts)

    def report_markdown(self, batch_stats: Sequence[BatchStats]) -> str:
        """Precision, recall, F1 and number of each type of span, or of each tag."""
        tagged = self._tagged_words(batch_stats)
        if len(tagged.classes) > _MAX_REPORT_CLASSES:
            return ""
        if self.has_spans:
            return counts_table(
                "type", self.span_types(), self._span_counts(tagged).sum(0), "spans"
            )
        return counts_table(
            "tag", list(map(str, tagged.classes)), tag_counts(tagged).sum(0), "tokens"
        )

    def plot(self, batch_stats: Sequence[BatchStats], path: Path) -> bool:
        from miniformer.tasks.common.plots import plot_confusion_matrix

        tagged = self._tagged_words(batch_stats)
        assert tagged.labels is not None
        counts = confusion_matrix(tagged.labels, tagged.predictions, len(tagged.classes))
        plot_confusion_matrix(counts, list(map(str, tagged.classes)), path)
        return True

    def usage_snippet(self) -> str:
        return 'print(m.predict([["The", "tokens", "of", "a", "sentence"]]))'

    def usage_command(self, directory: str) -> str:
        return f'predict {directory} "a sentence, whose tokens are separated by spaces"'

    def is_single_input(self, value: Any) -> bool:
        """True for a text, or for the tokens of one; see `answers.is_single_input`."""
        return is_single_input(value)

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
        """For each input `tokens`, `tags`, and `scores`, the probability of each tag.

        Of a tag scheme also `entities`: for each span its `type`, `start` and `end` (exclusive) as
        indices of tokens, `text`, the tokens joined by spaces, and `score`, the mean of its tags'.

        Args:
            model, tokenizer, options: see `Task.predict`.
            inputs: a list of tokens each, or a text, whose tokens are separated by whitespace.
            batch_size: windows at once.
            truncate: has no effect: inputs of any length are read, in windows.

        Raises:
            InputError: an input has another type.
        """
        assert tokenizer is not None
        if truncate:
            warnings.warn(
                "truncate has no effect: inputs of any length are tagged, in windows",
                NoEffectWarning,
                stacklevel=2,
            )
        tokens = split_inputs(inputs)
        windows = encode_tokens(tokens, tokenizer, model.config.max_seq_len)
        examples = sorted((x for row in windows for x in row), key=lambda x: len(x["inputs"]))
        device = next(model.parameters()).device
        stats = []
        with torch.inference_mode():
            size = batch_size or _BATCH_SIZE
            for first in range(0, len(examples), size):
                batch = collate_words(examples[first : first + size])
                batch = {name: value.to(device) for name, value in batch.items()}
                stats.append(self._word_stats(self.logits(model, batch), batch))
        scheme = self.resolved_scheme if self.has_spans else None
        answer = partial(make_answer, scheme=scheme, strict=self.strict_spans)
        answers: list[Any] = [answer(row, [], []) for row in tokens]
        if stats:
            tagged = self._tagged_words(stats)
            parts = zip(
                tagged.records, tagged.tags(tagged.predictions), tagged.split(tagged.scores),
                strict=True,
            )  # fmt: skip
            for record, tags, scores in parts:
                answers[record] = answer(tokens[record], tags, scores.tolist())
        return answers
