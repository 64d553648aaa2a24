"""Task: what a batch means, from a record of a file to a figure that tells.

    records -> fit -> encode -> examples -> cutter -> batch -> loss, measure -> figures
    inputs of a user -> predict or answer

A task is a frozen config whose fields are its options and what it has learnt from the training
data; with its name in front it is a model directory's `task.json`. To add one, subclass `Task` in a
file of its own and register it:

    miniformer.register("task", "my_task", MyTask)

Letters: B batch, T length, S source length, N labelled positions, D width, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from miniformer import registry
from miniformer.config import GenerationConfig, StrictConfig, TransformerConfig, UserError
from miniformer.config.renames import TASK_OPTIONS
from miniformer.config.strict import rename_keys
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import Batcher
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.reading.records import Record, Records
from miniformer.data.reading.schema import Schema
from miniformer.data.tokenizers.tokenizer import Tokenizer

BatchStats = dict[str, Any]  # what `measure` says of a batch


@dataclasses.dataclass(frozen=True)
class Task(StrictConfig):
    """Base of the tasks; a subclass is a frozen dataclass, too."""

    name: ClassVar[str]
    models: ClassVar[tuple[str, ...]]  # the kinds of model that learn it, the usual one first
    loss_unit: ClassVar[str] = "nats"  # of its loss
    maximize: ClassVar[frozenset[str]] = frozenset()  # figures; the others are losses
    metrics: ClassVar[tuple[str, ...]] = ("loss",)  # its figures, the most telling first
    per_token_loss: ClassVar[bool] = False  # of texts: a batch is so many tokens, not examples
    # Arrays of an example that have an entry for each token that a model reads or predicts, and the
    # tensors [B, T, ...] of a batch that have one, each with its mask: the name of a tensor [B, T]
    # that is 0 where there is padding ("labels": -100). Sizes, tokens/s and padding follow from
    # them; of a task that does not say so, from the first array.
    token_arrays: ClassVar[tuple[str, ...]] = ()
    token_tensors: ClassVar[dict[str, str]] = {}
    # Fields of a record whose texts may have a tokenizer each: the source and its target.
    text_fields: ClassVar[tuple[str, str] | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if (name := cls.__dict__.get("name")) in TASK_OPTIONS:
            cls.former_names = TASK_OPTIONS[name]

    @property
    def schema(self) -> Schema:
        """The fields of a record, and their checks."""
        raise NotImplementedError

    def for_model(self, kind: str) -> Task:
        """The task as a kind of model learns it: encoder or seq2seq.

        Raises:
            UserError: it cannot.
        """
        if kind not in self.models:
            raise UserError(f"task={self.name} is learnt by model={' or '.join(self.models)}")
        return self

    def fit(self, records: Records) -> Self:
        """This task, with what it must know of the training data, such as the classes there are.

        Raises:
            RecordError: a record does not keep to the schema.
            UserError: the data cannot be learnt from.
        """
        return self

    def is_empty(self, record: Record) -> bool:
        """Whether a record has nothing that a loss could be of; all of a file must not."""
        return False

    def texts(self, record: Record) -> Iterator[str]:
        """The text of a record, for a tokenizer to learn from; nothing where there is none."""
        raise NotImplementedError

    def reads_text(self) -> bool:
        """Whether a tokenizer is needed; known after `fit`."""
        return True

    def model_config(
        self, overrides: dict[str, Any], tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        """A model's config: what the user gave, and what follows from data and task.

        Raises:
            UserError: what was given does not go with them.
        """
        vocabulary = {} if tokenizer is None else {"vocab_size": tokenizer.vocab_size}
        if tokenizer is not None and tokenizer.separate_source_tokenizer is not None:
            vocabulary["source_vocab_size"] = tokenizer.separate_source_tokenizer.vocab_size
        return {**vocabulary, **overrides}

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        """Refuses a model that cannot learn this task.

        Raises:
            UserError: what stands in its way, and what to set.
        """
        source = None if tokenizer is None else tokenizer.separate_source_tokenizer
        if config.source_vocab_size is not None and source is None:
            raise UserError(
                f"model_config: source_vocab_size={config.source_vocab_size} is for sources with a "
                "tokenizer of their own; set source_tokenizer, or leave it out"
            )
        for name, one in (("vocab_size", tokenizer), ("source_vocab_size", source)):
            size = getattr(config, name)
            if one is not None and size < one.vocab_size:
                raise UserError(
                    f"model_config: {name}={size} is smaller than the tokenizer's "
                    f"{one.vocab_size} ids; leave {name} out to take the tokenizer's"
                )

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer | None, seq_len: int
    ) -> list[Example]:
        """Examples, of one record none, one or several, all with the same names.

        An example may say how many places of it were cut off, as `cut`, to be told to the user.

        Args:
            records: checked by `schema`.
            tokenizer: None: the task reads no text.
            seq_len: tokens at most, of inputs and targets each.
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
        """How examples become batches: packed windows, or buckets of like length."""
        raise NotImplementedError

    @property
    def num_forward_passes(self) -> int:
        """Forward passes over each training batch: two with R-Drop."""
        return 2 if getattr(self, "r_drop", 0.0) else 1

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss, and what it sums over (its number or weight): the loss is their quotient."""
        raise NotImplementedError

    def eval_step(self, model: Any, batch: Batch) -> BatchStats:
        """What `figures` needs to know of a batch of validation; the model is in eval mode."""
        loss, count = self.loss(model, batch)
        return {"loss": loss, "count": count}

    def test_step(self, model: Any, batch: Batch) -> BatchStats:
        """The same of a batch of the test at the end of a run."""
        return self.eval_step(model, batch)

    def compute_metrics(
        self, batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None = None
    ) -> dict[str, float]:
        """The figures of a validation, `loss` among them."""
        return {"loss": mean(batch_stats, "loss", "count")}

    def pre_run_warnings(self, metric: str) -> Iterator[str]:
        """What a user should know before a run whose best model `metric` tells.

        Raises:
            UserError: the metric cannot be had.
        """
        return iter(())

    def data_warnings(self) -> Iterator[str]:
        """What was found out of the training data, of which a user may think otherwise."""
        return iter(())

    def tokenizer_warnings(self, tokenizer: Tokenizer, records: Records) -> Iterator[str]:
        """What a user should know of how a tokenizer treats the texts of records."""
        return iter(())

    def report_markdown(self, batch_stats: Sequence[BatchStats]) -> str:
        """More than figures can say, as Markdown for the model card; may be empty."""
        return ""

    def plot(self, batch_stats: Sequence[BatchStats], path: Path) -> bool:
        """Draws what there is to see of a validation into a PNG file; False: nothing."""
        return False

    def default_generation_config(
        self, config: TransformerConfig, tokenizer: Tokenizer
    ) -> GenerationConfig:
        """How a new model decodes by default."""
        return GenerationConfig(
            max_new_tokens=min(128, -(-config.max_seq_len // 2)),
            temperature=0.8,
            eos_id=tokenizer.eos_id,
        )

    def usage_snippet(self) -> str:
        """A line of Python that uses a trained model `m`, for its card."""
        return 'print(m.predict(["..."]))'

    def sample_prompts(self, records: Records) -> list[str]:
        """Prompts to be answered at each validation, for a user to read; none by default."""
        return []

    def usage_command(self, directory: str) -> str:
        """Arguments of `miniformer` that use a trained model."""
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
        """Text written to each prompt.

        Raises:
            UserError: a prompt leaves no room for `max_new_tokens`, or the task writes none.
        """
        raise UserError(f"a model for {self.name} writes no text; use predict")

    def predict(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        inputs: Sequence[Any],
        options: GenerationConfig,
        *,
        truncate: bool = False,
    ) -> list[Any]:
        """Answers to inputs as they stand in records, in plain types.

        Args:
            model, tokenizer: the model directory's own.
            inputs: as in records.
            options: how text is decoded.
            truncate: cut inputs that are longer than the model reads, as training does.

        Raises:
            InputError: inputs are none, or too long.
            UserError: the task gives no answers.
        """
        raise UserError(f"a model for {self.name} predicts nothing but text; use generate")

    def settings(self) -> dict[str, Any]:
        """What `task.json` holds."""
        return {"task": self.name, **self.to_dict()}


def stored_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The content of a `task.json` under current names."""
    name = settings.get("task")
    if not isinstance(name, str):
        return settings
    name = registry.current_name("task", name)
    current, _ = rename_keys(settings, TASK_OPTIONS.get(name, {}), warn=False)
    return {**current, "task": name}


def total(batch_stats: Sequence[BatchStats], name: str) -> float:
    """The sum of a number over batches."""
    return float(sum(float(each[name]) for each in batch_stats))


def mean(batch_stats: Sequence[BatchStats], name: str, count: str) -> float:
    """The sum of one number over that of another."""
    return total(batch_stats, name) / max(total(batch_stats, count), 1e-12)


def concat_batches(batch_stats: Sequence[BatchStats], name: str) -> Tensor:
    """Tensors [B, ...] of all batches, one after another, on the CPU."""
    return torch.cat([each[name].detach().cpu() for each in batch_stats])


def token_loss(
    model: Any, features: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats of labelled positions, and how many there are.

    Args:
        model: has a `cross_entropy`.
        features: [B, T, D].
        labels: int [B, T]; -100: nothing is predicted there.
        label_smoothing: share of each label that is spread over the vocabulary; in training only,
            so that figures stay what they are.
    """
    kept = labels != IGNORE_INDEX
    if not bool(kept.all()):  # the head need not see what is not predicted
        features, labels = features[kept], labels[kept]  # [N, D], [N]
    smoothing = {"label_smoothing": label_smoothing} if label_smoothing and model.training else {}
    loss = model.cross_entropy(features.flatten(0, -2), labels.flatten(), **smoothing)
    return loss, loss.new_tensor(labels.numel())


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Mean of both Kullback-Leibler divergences between two distributions, in nats, summed.

    Args:
        first, second: logits, [..., C].
    """
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2  # KL(p, q) + KL(q, p)
