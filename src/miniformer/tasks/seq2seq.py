"""Sequence to sequence: generates a target from a source, as in translation.

source    | a b c B        B: the boundary token, which is EOS
target    | B d e          and the decoder's start token
labels    | d e B
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
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
from miniformer.generation.api import GenerationInput
from miniformer.registry import plugins
from miniformer.tasks.base import BatchStats, Task
from miniformer.tasks.common.copy_noise import SHARED_COLUMN, shared_part, with_copy_noise
from miniformer.tasks.common.generated_texts import (
    describe_decoding,
    generate_targets,
    make_results,
    text_metrics,
)
from miniformer.tasks.common.input_encoding import check_max_seq_len, ids_to_array
from miniformer.tasks.common.losses import TokenLossRecorder
from miniformer.tasks.common.record_results import RecordResults
from miniformer.tasks.common.seq2seq_batch import (
    collate_seq2seq,
    seq2seq_example_losses,
    seq2seq_loss,
)
from miniformer.tasks.common.text_generation import TextGenerationTask, group_copies
from miniformer.tasks.common.text_metrics import (
    has_sacrebleu,
    lossy_target_warnings,
    resampled_text_metrics,
)

_FEATURE_VARIANT = "miniformer.tasks.feature_seq2seq:FeatureSeq2Seq"  # a subclass
_MAX_CHECKED_TARGETS = 1_000  # records whose targets are decoded before training


@dataclasses.dataclass(frozen=True)
class Seq2Seq(TextGenerationTask):
    """The task of `{"source": ..., "target": ...}` records.

    Args:
        max_source_len: maximum tokens of a source, including EOS; null: seq_len.
        max_target_len: maximum tokens of a target, including EOS; null: seq_len. Longer texts are
            truncated, and counted.
        start_id: the decoder's start token; null: the tokenizer's boundary token.
        label_smoothing: fraction of each label that is spread over the vocabulary, in training.
        r_drop: weight of the divergence between two passes over each batch, which differ by their
            dropout (R-Drop, Wu et al. 2021); 0: one pass.
        bpe_dropout: probability of undoing each BPE merge in sources and targets, drawn anew in
            each epoch (see `miniformer.data.tokenizers.bpe_dropout`); needs bpe tokenizers.
        copy_noise: probability of exchanging a piece of the longest part that a target shares with
            its source, in both (see `miniformer.tasks.common.copy_noise`), drawn anew in each
            epoch; needs one tokenizer for sources and targets. A run sets it for characters.
        eval_generate_samples: number of random validation examples to generate targets for, for
            exact match, BLEU and chrF; the test generates all. 0: none, in the test either.
        num_beams, length_penalty: see `GenerationConfig`; of the test and the trained model.
            Validation decodes greedily to save time.
        source_kind: text, or features (a list of vectors); null: as in the training data.
        input_dim: width of feature vectors; null: as in the training data.
        max_input_len: maximum vectors of a source; null: seq_len, or as many as the model's `input`
            makes seq_len vectors of.
        standardize: standardize each feature of sources; false: use raw features.
        feature_means, feature_stds: statistics of each feature, in the units of the data; null:
            those of the training data, over all vectors. A constant feature has std 1.
    """

    name: ClassVar[str] = "seq2seq"
    models: ClassVar[tuple[str, ...]] = ("seq2seq",)
    loss_unit: ClassVar[str] = "nats/token"
    maximize: ClassVar[frozenset[str]] = frozenset({"exact_match", "bleu", "chrf"})
    metrics: ClassVar[tuple[str, ...]] = ("loss", "bleu", "chrf", "exact_match")
    proportions: ClassVar[tuple[str, ...]] = ("exact_match",)
    text_fields: ClassVar[tuple[str, str] | None] = ("source", "target")
    per_token_loss: ClassVar[bool] = True
    continues_prompts: ClassVar[bool] = False
    token_arrays: ClassVar[tuple[str, ...]] = ("source", "labels")
    token_tensors: ClassVar[dict[str, str]] = {"source": "source_mask", "target": "labels"}

    max_source_len: int | None = option(None, low=2)
    max_target_len: int | None = option(None, low=2)
    start_id: int | None = option(None, low=0)
    label_smoothing: float = option(0.0, low=0.0, high=0.99)
    r_drop: float = option(0.0, low=0.0)
    bpe_dropout: float = option(0.0, low=0.0, high=0.99)
    copy_noise: float = option(0.0, low=0.0, high=1.0)
    eval_generate_samples: int = option(500, low=0)
    num_beams: int = option(1, low=1)
    length_penalty: float = 1.0
    source_kind: str | None = option(None, choices=("text", "features"))
    input_dim: int | None = option(None, low=1)
    max_input_len: int | None = option(None, low=1)
    standardize: bool = True
    feature_means: list[float] | None = None
    feature_stds: list[float] | None = None

    def cross_check(self) -> list[str]:
        given = {"input_dim", "feature_means", "feature_stds", "max_input_len"}
        for name in sorted(given) if self.source_kind == "text" else ():
            if getattr(self, name) is not None:
                return [f"{name} is for vectors, and sources are texts; leave it out"]
        return super().cross_check()

    def for_model(self, kind: str) -> Task:
        """`FeatureSeq2Seq` for sources that are vectors."""
        super().for_model(kind)
        if self.source_kind != "features" or "source" not in self.schema:
            return self
        variant: Any = plugins.import_path(_FEATURE_VARIANT)
        if type(self) is variant:
            return self
        if type(self) is not Seq2Seq:
            raise UserError(f"task_config: {self.name} has no sources of vectors")
        task: Task = variant(**self.to_dict())
        return task

    def fit(self, records: Records) -> Any:
        """Infers the kind of the sources from the first record."""
        if self.source_kind is not None or "source" not in self.schema:
            return self
        first = next(iter(records), {"source": ""})["source"]
        kind = "text" if isinstance(first, str) else "features"
        fitted = dataclasses.replace(self, source_kind=kind)
        return fitted if kind == "text" else fitted.for_model("seq2seq").fit(records)

    @property
    def schema(self) -> Schema:
        source = schema.check_text if self.source_kind == "text" else schema.check_source
        return {"source": source, "target": schema.check_text}

    def texts(self, record: Record) -> Iterator[str]:
        yield record["source"]
        yield record["target"]

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples with `source`, `labels`, and `reference`, the target text as bytes."""
        assert tokenizer is not None
        self._check_source_kind(records)
        sources = self.encode_sources([record["source"] for record in records], tokenizer, seq_len)
        max_length = min(self.max_target_len or seq_len, seq_len)
        targets = tokenizer.encode_batch([record["target"] for record in records])
        frame = tokenizer.sequence_template
        examples = []
        for record, (source, cut), target in zip(records, sources, targets, strict=True):
            row = [*frame.prefix, *target, *frame.suffix]  # a truncated target has no EOS
            example = {
                "source": self.source_array(source, tokenizer),
                "labels": ids_to_array(row[:max_length], tokenizer),
                "reference": np.frombuffer(record["target"].encode(), dtype=np.uint8),
                "cut": cut + max(0, len(row) - max_length),
            }
            if self.copy_noise:
                example[SHARED_COLUMN] = shared_part(example, tokenizer.sequence_template)
            examples.append(example)
        return examples

    def _check_source_kind(self, records: Sequence[Record]) -> None:
        """Raises a UserError for vectors of a stream, whose kind of sources is not inferred."""
        if self.source_kind is not None:
            return
        if any(not isinstance(record["source"], str) for record in records):
            raise UserError(
                "sources are vectors, and the kind of the sources of a stream is text; set "
                "source_kind=features and input_dim in task_config, or leave out streaming"
            )

    def source_array(self, source: Any, tokenizer: Tokenizer) -> np.ndarray:
        """An encoded source as the array of an example."""
        return ids_to_array(source, tokenizer.source_tokenizer)

    def encode_sources(
        self, texts: Sequence[str], tokenizer: Tokenizer, seq_len: int
    ) -> list[tuple[list[int], int]]:
        """Token ids of each source, and the number of truncated tokens."""
        tokenizer = tokenizer.source_tokenizer
        frame = tokenizer.sequence_template
        max_ids = (
            min(self.max_source_len or seq_len, seq_len) - len(frame.prefix) - len(frame.suffix)
        )
        max_ids = max(0, max_ids)
        return [
            ([*frame.prefix, *ids[:max_ids], *frame.suffix], max(0, len(ids) - max_ids))
            for ids in tokenizer.encode_batch(texts)
        ]

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        super().check(config, tokenizer)
        if config.input_dim != self.required_input_dim():
            required = self.required_input_dim()
            raise UserError(
                f"model_config: input_dim must be {'null' if required is None else required} for "
                f"this data, not {config.input_dim}; leave it out"
            )
        if tokenizer is not None:
            frame = tokenizer.source_tokenizer.sequence_template
            # A target has a start token and at least one label.
            min_length = max(2, len(frame.prefix) + len(frame.suffix) + 1)
            check_max_seq_len(config, min_length, "sources and targets")
        if self.bpe_dropout and tokenizer is not None:
            self.bpe_merges(tokenizer)  # raises unless bpe
        if self.copy_noise and tokenizer is not None and tokenizer.separate_source_tokenizer:
            raise UserError(
                "task_config: copy_noise needs one tokenizer for sources and targets, and sources "
                "have their own; leave out source_tokenizer, or copy_noise"
            )

    def required_input_dim(self) -> int | None:
        """Width of the vectors of sources; None: they are texts."""
        return None

    def bpe_merges(self, tokenizer: Tokenizer) -> dict[str, BPEMerges]:
        """Merges of the columns that `bpe_dropout` changes; raises a UserError unless bpe."""
        return {"source": BPEMerges(tokenizer.source_tokenizer), "labels": BPEMerges(tokenizer)}

    def decoder_start_token_id(self, tokenizer: Tokenizer) -> int:
        """Id of the decoder's first input token."""
        return tokenizer.eos_id if self.start_id is None else self.start_id

    def collate_fn(self, tokenizer: Tokenizer | None, *, seq_len: int, training: bool) -> CollateFn:
        assert tokenizer is not None
        merges = self.bpe_merges(tokenizer) if self.bpe_dropout and training else {}
        collate: CollateFn = partial(
            collate_seq2seq,
            start_id=self.decoder_start_token_id(tokenizer),
            end_id=None if training else tokenizer.eos_id,
        )
        if training:
            collate = with_copy_noise(collate, self.copy_noise, max_length=seq_len)
        return with_bpe_dropout(collate, self.bpe_dropout, merges=merges, max_length=seq_len)

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `seq2seq_loss`."""
        return seq2seq_loss(model, batch, self.label_smoothing, self.r_drop)

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        return seq2seq_example_losses(model, batch, self.label_smoothing)

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        """Loss, and of the first `eval_generate_samples` examples generated texts."""
        served = batch.get("about", {}).get("examples", 0)
        return self._generate_and_eval(
            model, batch, self.eval_generate_samples - served, GenerationConfig()
        )

    def test_step(self, model: Any, batch: Batch) -> BatchStats:
        config = GenerationConfig(num_beams=self.num_beams, length_penalty=self.length_penalty)
        num_samples = len(batch["source"]) if self.eval_generate_samples else 0
        return self._generate_and_eval(model, batch, num_samples, config)

    def _generate_and_eval(
        self, model: Any, batch: Batch, num_samples: int, generation_config: GenerationConfig
    ) -> BatchStats:
        stats = super().eval_step(model, batch)
        num_samples = min(len(batch["source"]), num_samples)
        if "references" not in batch or num_samples <= 0:
            return stats
        rows = self.source_rows(batch, num_samples)
        return {**stats, **generate_targets(model, batch, rows, generation_config)}

    def source_rows(self, batch: Batch, num_rows: int) -> list[Any]:
        """The first sources of a batch, without padding, for `GenerationInput`."""
        source, mask = batch["source"][:num_rows], batch.get("source_mask")
        lengths = [source.shape[1]] * num_rows if mask is None else mask[:num_rows].sum(1).tolist()
        return [row[:length] for row, length in zip(source.tolist(), lengths, strict=True)]

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Loss, and of generated texts exact match (a fraction), BLEU and chrF (0 to 100).

        BLEU and chrF are sacrebleu's with default settings (13a tokens, cased). References are
        targets after encoding and decoding, see `round_trip`.
        """
        metrics = super().compute_metrics(batch_stats)
        return metrics if tokenizer is None else {**metrics, **text_metrics(batch_stats, tokenizer)}

    def record_step(self, model: Any, batch: Batch) -> BatchStats:
        recorder = TokenLossRecorder(model)
        self.loss(recorder, batch)  # of its own: generation needs the model itself
        return {**self.test_step(model, batch), **recorder.stats(batch)}

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults:
        """Results of each record; see `make_results`."""
        return make_results(batch_stats, tokenizer)

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        metrics = super().resampled_metrics(results, counts)
        return {**metrics, **resampled_text_metrics(results.statistics, counts)}

    def pre_run_warnings(self, metric: str) -> Iterator[str]:
        if self.eval_generate_samples and not has_sacrebleu():
            if metric in ("bleu", "chrf"):
                raise UserError(
                    f"checkpoint_metric={metric} needs the package sacrebleu; "
                    'pip install "miniformer[eval]"'
                )
            yield 'BLEU and chrF are not computed; they need pip install "miniformer[eval]"'

    def tokenizer_warnings(self, tokenizer: Tokenizer, records: Records) -> Iterator[str]:
        sample = list(islice(records, _MAX_CHECKED_TARGETS))
        examples = self.encode(sample, tokenizer, 2)  # for references, which are not truncated
        targets = [example["reference"].tobytes().decode() for example in examples]
        yield from lossy_target_warnings(targets, tokenizer)

    def report_markdown(self, batch_stats: Sequence[BatchStats]) -> str:
        """Decoding method and number of examples of the text metrics."""
        return describe_decoding(batch_stats)

    def default_generation_config(
        self, config: TransformerConfig, tokenizer: Tokenizer
    ) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=min(self.max_target_len or 256, config.max_seq_len - 1),
            temperature=0.0,
            eos_id=tokenizer.eos_id,
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
        )

    def sample_prompts(self, records: Records) -> list[str]:
        """The first source; in subclasses with other fields, the first text."""
        first = list(islice(records, 1))
        if "source" in self.schema:
            return [record["source"] for record in first]
        return [text for record in first for text in islice(self.texts(record), 1)]

    def generation_inputs(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        max_new_tokens: int = 0,
    ) -> list[GenerationInput]:
        start = [self.decoder_start_token_id(tokenizer)]
        sources = self.encode_sources(prompts, tokenizer, model.config.max_seq_len)
        if not truncate:
            problems = {
                number: f"is {cut} tokens longer than the model reads; shorten it, or truncate it"
                for number, (_, cut) in enumerate(sources)
                if cut
            }
            if problems:
                raise InputError(problems)
        return [GenerationInput(start, ids) for ids, _ in sources]

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
        """The best target of each source, or a list of the best `num_return_sequences`."""
        assert tokenizer is not None
        self.check_sources(inputs)
        size: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
        outputs = self.generate(model, tokenizer, inputs, options, truncate=truncate, **size)
        return group_copies([text for text, _ in outputs], options)

    def check_sources(self, inputs: Sequence[Any]) -> None:
        """Raises an InputError for sources of another kind than those of training."""
        problems = {
            number: f"must be a string, not {text!r}"
            for number, text in enumerate(inputs)
            if not isinstance(text, str)
        }
        if problems:
            raise InputError(problems)
