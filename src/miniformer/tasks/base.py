"""Base class of tasks: encoding of records, loss, metrics, and prediction.

    records -> fit -> encode -> examples -> batcher -> batch -> loss, eval_step -> compute_metrics
    records of `miniformer evaluate` -> record_step -> record_results -> resampled_metrics
    inputs of a user -> predict or generate_text

A task is a frozen config. Its fields are its options and the values that `fit` derives from the
training data. A model directory stores them, with the task's name, as `task.json`. To add a task,
subclass `Task` in a file of its own and register it:

    miniformer.register("task", "my_task", MyTask)

Letters: B batch, T length, S source length, N labeled positions, D width, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from miniformer.config import GenerationConfig, StrictConfig, TransformerConfig, UserError
from miniformer.config.renames import TASK_OPTIONS
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn, LengthBucketBatcher
from miniformer.data.batching.loader import Batcher
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.record_results import RecordResults
from miniformer.tasks.common.resampling import weighted_mean
from miniformer.tasks.helper_models import HelperModels
from miniformer.tasks.loss_terms import LossResult

BatchStats = dict[str, Any]  # output of `Task.eval_step` for one batch


@dataclasses.dataclass(frozen=True)
class Task(StrictConfig, HelperModels):
    """Base class of tasks. Subclasses are frozen dataclasses, too.

    `HelperModels` has the hook for models that the loss needs and that are not trained.
    """

    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]  # supported model kinds, the default first
    causal: ClassVar[bool] = False  # an encoder is causal by default: a decoder
    loss_unit: ClassVar[str] = "nats"
    maximize: ClassVar[frozenset[str]] = frozenset()  # metrics where higher is better
    metrics: ClassVar[tuple[str, ...]] = ("loss",)  # the most informative first
    proportions: ClassVar[tuple[str, ...]] = ()  # metrics that are the share of `correct` records
    per_token_loss: ClassVar[bool] = False  # of texts: batch sizes are in tokens, not examples
    supports_wide_head: ClassVar[bool] = False  # it has `wide_inputs` and `wide_labels`
    loss_terms: ClassVar[tuple[str, ...]] = ()  # names of the terms of `loss`; also metrics
    has_own_passes: ClassVar[bool] = False  # a training step is not one pass of a plain loss
    # `token_arrays`: arrays of an example with an entry for each token that is read or predicted.
    # `token_tensors`: the tensors [B, T, ...] of a batch with such entries, each with its mask: the
    # name of a tensor [B, T] that is 0 at padding ("labels": -100). Lengths, tokens/s and the
    # padding fraction are computed from them, or else from the first array.
    token_arrays: ClassVar[tuple[str, ...]] = ()
    token_tensors: ClassVar[dict[str, str]] = {}
    # Fields of records beyond the schema that metrics need. The batches of validation and test have
    # `fields` and `records` (see `FieldBatcher`), and so have the `batch_stats` of
    # `compute_metrics` and `record_results`.
    extra_fields: ClassVar[tuple[str, ...]] = ()
    # Record fields that may have separate tokenizers: source and target.
    text_fields: ClassVar[tuple[str, str] | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if (name := cls.__dict__.get("name")) in TASK_OPTIONS:
            cls.former_names = TASK_OPTIONS[name]
        hooks = ("step", "after_optimizer_step", "helper_models")
        changed = any(getattr(cls, name) is not getattr(Task, name) for name in hooks)
        cls.has_own_passes = changed or bool(cls.loss_terms)

    @property
    def schema(self) -> Schema:
        """Fields of a record with their checks."""
        raise NotImplementedError

    def for_model(self, kind: str) -> Task:
        """Returns the variant of the task for a model kind: encoder or seq2seq.

        Raises:
            UserError: the model kind does not support the task.
        """
        if kind not in self.models:
            raise UserError(f"task={self.name} needs model={' or '.join(self.models)}")
        return self

    def fit(self, records: Records) -> Self:
        """Returns the task with statistics of the training data filled in, such as the classes.

        Raises:
            RecordError: a record violates the schema.
            UserError: the data cannot be used for training.
        """
        return self

    def is_empty(self, record: Record) -> bool:
        """True for a record without labels. A file needs at least one other record."""
        return False

    def texts(self, record: Record) -> Iterator[str]:
        """Yields the texts of a record, for tokenizer training."""
        raise NotImplementedError

    def reads_text(self) -> bool:
        """True if a tokenizer is needed. Known after `fit`."""
        return True

    def special_tokens(self) -> tuple[str, ...]:
        """Special tokens of a new tokenizer, in addition to its own. Known after `fit`."""
        return ()

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        """Model config fields derived from data and task, updated with the user's overrides.

        Raises:
            UserError: an override conflicts with data or task.
        """
        vocabulary = {} if tokenizer is None else {"vocab_size": tokenizer.vocab_size}
        if tokenizer is not None and tokenizer.separate_source_tokenizer is not None:
            vocabulary["source_vocab_size"] = tokenizer.separate_source_tokenizer.vocab_size
        return {**vocabulary, **overrides}

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        """Checks that a model config fits this task.

        Raises:
            UserError: names the conflicting field and its fix.
        """
        source = None if tokenizer is None else tokenizer.separate_source_tokenizer
        if config.source_vocab_size is not None and source is None:
            raise UserError(
                f"model_config: source_vocab_size={config.source_vocab_size} needs a separate "
                "source tokenizer; set source_tokenizer, or leave it out"
            )
        for name, part in (("vocab_size", tokenizer), ("source_vocab_size", source)):
            size = getattr(config, name)
            if part is not None and size < part.vocab_size:
                raise UserError(
                    f"model_config: {name}={size} is smaller than the tokenizer's "
                    f"{part.vocab_size} ids; leave {name} out to take the tokenizer's"
                )

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Encodes records into examples with equal keys; a record gives none, one or several.

        The key `cut` of an example counts the tokens that were truncated, and `dropped` those of a
        record that is left out; the run reports them.

        Args:
            records: checked by `schema`.
            tokenizer: None: the task reads no text.
            seq_len: maximum tokens of inputs and of targets.
        """
        raise NotImplementedError

    def batcher(
        self,
        tokenizer: Tokenizer | None,
        *,
        seq_len: int,
        batch_size: int,
        batch_tokens: int | None,
        training: bool,
    ) -> Batcher:
        """Batcher of the examples: length buckets of `token_arrays`, unless overridden."""
        return LengthBucketBatcher(
            self.collate_fn(tokenizer, seq_len=seq_len, training=training),
            length_columns=self.token_arrays,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
        )

    def collate_fn(self, tokenizer: Tokenizer | None, *, seq_len: int, training: bool) -> CollateFn:
        """Function that makes a batch of examples, for `batcher`."""
        raise NotImplementedError

    @property
    def num_forward_passes(self) -> int:
        """Forward passes per training batch: two with R-Drop."""
        return 2 if getattr(self, "r_drop", 0.0) else 1

    def loss(self, model: Any, batch: Batch) -> LossResult:
        """Summed loss, and the count or weight that it sums over; the loss is their quotient.

        Optionally also further terms of the objective by name, those of `loss_terms`.
        """
        raise NotImplementedError

    def example_losses(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss of each example, [B], without R-Drop; their sum is the summed loss.

        Usable under `torch.func`: see `miniformer.tasks.common.example_gradients`.
        """
        raise UserError(f"task={self.name} has no losses of single examples")

    def step(self, context: Any) -> None:
        """Forward and backward passes of a training batch: one of each, unless overridden.

        Args:
            context: a `miniformer.training.loss.context.StepContext`.
        """
        context.backward(*context.loss())

    def after_optimizer_step(self, model: Any, sums: dict[str, Tensor]) -> None:
        """Changes a model after an optimizer step, without gradients.

        Args:
            model: the model.
            sums: `LossTerm.stats` of the task's terms, summed over the batches and devices of the
                step, by name.
        """

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        """Statistics of a validation batch for `compute_metrics`; the model is in eval mode."""
        loss, count, *_ = self.loss(model, batch)
        return {"loss": loss, "count": count}

    def test_step(self, model: Any, batch: Batch) -> BatchStats:
        """Statistics of a batch of the final test."""
        return self.eval_step(model, batch)

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """Metrics of a validation; `loss` is one of them."""
        return {"loss": mean(batch_stats, "loss", "count")}

    def record_step(self, model: Any, batch: Batch) -> BatchStats:
        """Statistics of `test_step`, and those that `record_results` needs.

        Args:
            model: in eval mode, on the device of the batch.
            batch: with `records`, the index of each row's record, int64 [B]; in a packed batch of
                each label's record, int64 [B, T]. It is on the CPU.
        """
        return self.test_step(model, batch)

    def record_results(
        self, batch_stats: Sequence[BatchStats], records: Records, tokenizer: Tokenizer | None
    ) -> RecordResults | None:
        """Results of each record; None: the task has metrics of the whole data only.

        Args:
            batch_stats: of `record_step`, each with the batch's `records`.
            records: the data.
            tokenizer: decodes generated text.
        """
        return None

    def resampled_metrics(
        self, results: RecordResults, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Metrics of `compute_metrics` for resamples or groups of records, float64 [R] each.

        For all records they are those of `compute_metrics`, up to rounding. NaN: not defined.

        Args:
            results: of `record_results`.
            counts: times that each resample contains each record, int [R, N]; see
                `miniformer.tasks.common.resampling`, which has most formulas.
        """
        return {"loss": weighted_mean(counts, results.losses, results.weights)}

    def wide_inputs(self, model: Any, batch: Batch) -> dict[str, Tensor | None]:
        """Tensors of a batch that the features of a wide head read."""
        raise NotImplementedError

    def wide_labels(self, batch: Batch) -> Batch:
        """A batch without inputs, for `loss` and `eval_step` of outputs that are known.

        Its tensors have a row for each row of the features, so that batches can be concatenated.
        """
        raise NotImplementedError

    def fit_to_validation(self, batch_stats: Sequence[BatchStats]) -> Self:
        """Returns the task with values fitted to a validation, such as decision thresholds.

        The metrics of that validation, and the `task.json` of the model that it evaluated, are
        those of the returned task.
        """
        return self

    def pre_run_warnings(self, metric: str) -> Iterator[str]:
        """Warnings before a run that selects the best checkpoint by `metric`.

        Raises:
            UserError: the metric is not available.
        """
        return iter(())

    def data_warnings(self) -> Iterator[str]:
        """Warnings about settings that `fit` derived from the training data."""
        return iter(())

    def record_warnings(self, records: Records) -> Iterator[str]:
        """Warnings about training records, with their file:line; the task is fitted to them."""
        return iter(())

    def setting_notes(self) -> list[ResolvedSetting]:
        """Options that are not given although the training data suggests to set them."""
        return []

    def tokenizer_warnings(self, tokenizer: Tokenizer, records: Records) -> Iterator[str]:
        """Warnings about texts that the tokenizer does not preserve."""
        return iter(())

    def report_markdown(self, batch_stats: Sequence[BatchStats]) -> str:
        """Markdown for the model card, in addition to the metrics; may be empty."""
        return ""

    def plot(self, batch_stats: Sequence[BatchStats], path: Path) -> bool:
        """Draws a plot of a validation into a PNG file. Returns False if there is none."""
        return False

    def default_generation_config(
        self, config: TransformerConfig, tokenizer: Tokenizer
    ) -> GenerationConfig:
        """Default decoding options of a new model."""
        return GenerationConfig(
            max_new_tokens=min(128, -(-config.max_seq_len // 2)),
            temperature=0.8,
            eos_id=tokenizer.eos_id,
        )

    def usage_snippet(self) -> str:
        """A line of Python that uses a trained model `m`, for the model card."""
        return 'print(m.predict(["..."]))'

    def sample_prompts(self, records: Records) -> list[str]:
        """Prompts for the generation samples of each validation; none by default."""
        return []

    def usage_command(self, directory: str) -> str:
        """Command-line arguments of `miniformer` that use a trained model."""
        return f'predict {directory} "your input"'

    def generate_text(
        self,
        model: Any,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        options: GenerationConfig,
        *,
        truncate: bool = False,
    ) -> list[str]:
        """Generates text for each prompt.

        Raises:
            UserError: a prompt leaves no room for `max_new_tokens`, or the task generates no text.
        """
        raise UserError(f"a model for {self.name} generates no text; use predict")

    def is_single_input(self, value: Any) -> bool:
        """True for one input of `predict`, false for a list of inputs."""
        return isinstance(value, str)

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
        """Predictions for inputs, in plain types.

        Args:
            model, tokenizer: those of the model directory.
            inputs: in the format of records.
            options: decoding options of generated text.
            truncate: truncate inputs longer than `max_seq_len`, as training does.
            batch_size: inputs at once; None: by their lengths.

        Raises:
            InputError: inputs are invalid or too long.
            UserError: the task only generates text.
        """
        raise UserError(f"a model for {self.name} only generates text; use generate")

    def settings(self) -> dict[str, Any]:
        """Content of `task.json`."""
        return {"task": self.name, **self.to_dict()}


def total(batch_stats: Sequence[BatchStats], name: str) -> float:
    """Sum of a statistic over batches."""
    return float(sum(float(stats[name]) for stats in batch_stats))


def mean(batch_stats: Sequence[BatchStats], name: str, count: str) -> float:
    """Ratio of two sums over batches."""
    return total(batch_stats, name) / max(total(batch_stats, count), 1e-12)


def concat_batches(batch_stats: Sequence[BatchStats], name: str) -> Tensor:
    """Concatenated tensors [B, ...] of all batches, on the CPU."""
    return torch.cat([stats[name].detach().cpu() for stats in batch_stats])
