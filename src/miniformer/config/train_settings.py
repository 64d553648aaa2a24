"""Parts of `TrainConfig`: a function takes the part that it needs. Each field is a flag.

The two longest parts are in files of their own, `model_settings.py` and `optimization_settings.py`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

from miniformer.config.model_settings import ModelSettings
from miniformer.config.optimization_settings import OptimizationSettings
from miniformer.config.strict import StrictConfig, option
from miniformer.utils.columns import column_problems
from miniformer.utils.names import name_problem
from miniformer.utils.units import parse_bytes

__all__ = [
    "IN_MEMORY",
    "BudgetSettings",
    "DataSettings",
    "EvaluationSettings",
    "FieldSettings",
    "HardwareSettings",
    "ModelSettings",
    "OptimizationSettings",
    "OutputSettings",
    "TrialSettings",
]

# A path of data that a Python program passed as records.
IN_MEMORY = "<records in memory>"
_SECONDS_PER_UNIT = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True)
class DataSettings(StrictConfig):
    """Data, task, tokenizer and batches.

    Args:
        train_path: training data: .jsonl, .csv, .tsv, .parquet, .arrow, .json, .conllu, .conll, a
            folder of Hugging Face datasets, or .txt for language modeling; .gz and .zst are
            decompressed; a glob such as 'data/*.jsonl', or a list of paths; or sources of which
            records are drawn by weight: [{"path": "a.jsonl", "weight": 3}, {"path": "b/*.jsonl",
            "weight": 1}].
        val_path: validation data in the same formats; null: see val_share.
        test_path: test data, evaluated with the best checkpoint at the end; null: no test.
        task: task, with the fields of its records: language_modeling {"text"}, masked_lm {"text"},
            classification {"input", "label"}, multilabel_classification {"input", "labels"},
            ordinal_regression {"input", "label"}, token_classification {"tokens", "tags"},
            regression {"input", "value"}, seq2seq {"source", "target"}; an input is a string, two
            strings, or a list of vectors.
        task_config: options of the task, such as {"label_smoothing": 0.1}.
        tokenizer: bpe (byte-level), unigram, wordpiece, word (separated by spaces), byte or char,
            trained on train_path; or the path of a tokenizer.json, a Hugging Face directory or a
            model directory; null: bpe, or char for inputs, or targets of seq2seq, without spaces.
            vocab_size in model_config sets its vocabulary size; null: 10,000, or fewer for small
            data with bpe or unigram, except in seq2seq and token_classification.
        source_tokenizer: separate tokenizer for the sources of seq2seq, with source_vocab_size in
            model_config; null: one shared tokenizer, or char for sources that are single words.
        seq_len: tokens per window, and maximum tokens of an input and of a target; null: the
            model's max_seq_len.
        batch_size: windows (packed) or average examples (length buckets) per batch and device;
            null: 16; for language_modeling and seq2seq 1/1000 of the training tokens, clamped to
            2,048 to 16,384 tokens per batch of all devices.
        batch_tokens: maximum tokens per batch, padding included; null: derived from batch_size.
        batch_order: order in which the batches of an epoch are drawn, of a package or by import
            path, such as {"type": "my_package.orders:ShortFirst", "epochs": 2}; null: random
            batches of examples of similar length, or of packed windows.
        num_workers: worker processes that read and encode data too large for memory; 0: a thread
            of the training process.
        streaming: read train_path once, in order, such as from a pipe ("-" is standard input), with
            a shuffle buffer.
    """

    heading: ClassVar[str] = "data"

    train_path: list[str | dict[str, Any]] | str = option("")
    val_path: list[str] | str | None = option(None)
    test_path: list[str] | str | None = option(None)
    task: str = option("language_modeling", kind="task")
    task_config: dict[str, Any] = option({})
    tokenizer: str | None = option(None)
    source_tokenizer: str | None = option(None)
    seq_len: int | None = option(None, low=1)
    batch_size: int | None = option(None, low=1)
    batch_tokens: int | None = option(None, low=1)
    batch_order: dict[str, Any] | str | None = option(None, kind="batch_order", paths=True)
    num_workers: int = option(0, low=0)
    streaming: bool = option(False)


@dataclasses.dataclass(frozen=True)
class FieldSettings(StrictConfig):
    """Columns of the data files and their format.

    Args:
        input_field: column of the input, source or tokens, such as text; several columns, such as
            premise,hypothesis, are a pair of texts, are joined by input_separator, or are numbers
            of one vector; a pattern such as 't*' is a series of numbers; null: the field's name.
        label_field: column of the label, labels, value, tags or target; several columns are several
            values, or labels with 1 for present; null: the field's name.
        text_field: column of the text of language_modeling and masked_lm; null: text.
        input_separator: text that joins several input fields, such as ' '; null: they stay a pair.
        columns: names of the columns of .csv and .tsv files without a header, such as text,label,
            or of .conll files; null: the first row has the names, and columns of .conll are 1, 2,
            and so on.
        delimiter: character between cells of .csv files; null: a comma, semicolon, tab or bar,
            whichever fits all rows; a tab in .tsv files.
        quoting: double: cells in double quotes may contain delimiters and line ends; none: quotes
            are ordinary characters; null: double.
        encoding: encoding of .csv, .tsv and .conll files, such as latin-1; null: UTF-8.
    """

    heading: ClassVar[str] = "columns"

    input_field: list[str] | str | None = option(None)
    label_field: list[str] | str | None = option(None)
    text_field: str | None = option(None)
    input_separator: str | None = option(None)
    columns: list[str] | str | None = option(None)
    delimiter: str | None = option(None)
    quoting: str | None = option(None, choices=("double", "none"))
    encoding: str | None = option(None)

    def cross_check(self) -> list[str]:
        return [*super().cross_check(), *column_problems(self)]


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(StrictConfig):
    """Validation, the best checkpoint and early stopping.

    Args:
        val_share: share of the training data that is set aside for validation, without val_path:
            records with equal inputs stay together, classes keep their shares, and of plain text it
            is the last part; null: 0.1, at least about 100 records (but at most a fifth of all) and
            at most 5,000, and none of fewer than 20; 0: none.
        val_check_interval: optimizer steps between validations; null: ten validations, or one
            an epoch if those are more, within a seventh of the time.
        checkpoint_metric: validation metric that selects the best checkpoint, such as mcc; the loss
            decides ties; null: accuracy, macro_f1 if classes are very unequal or for several
            labels, span_f1 of tags such as B-PER, mae of ordered classes; rmse, pearson for pairs
            of texts, or r2 of several values; exact_match, bleu or chrf by the targets of seq2seq;
            else the loss.
        early_stopping_patience: validations in which neither checkpoint_metric nor the loss improve
            before the run ends: the learning rate decays to 0 in a short phase from the best model;
            null: 5, or three tenths of the validations so far if more; 0: no early stopping.
        sample_prompt: prompt that is continued at each validation; null: the start of a text of
            the validation data.
        folds: cross-validation: number of parts of the training data, with a run for each that
            validates on that part and trains on the others. Classes have the same shares in all
            parts, and records with equal inputs are in one. null: one run.
        fold: the only one of the folds to train, from 1; null: all.
    """

    heading: ClassVar[str] = "evaluation"

    val_share: float | None = option(None, low=0.0, high=0.9)
    val_check_interval: int | None = option(None, low=1)
    checkpoint_metric: str | None = option(None)
    early_stopping_patience: int | None = option(None, low=0)
    sample_prompt: str | None = option(None)
    folds: int | None = option(None, low=2)
    fold: int | None = option(None, low=1)

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if self.fold is not None and self.folds is None:
            problems.append("fold is one of several folds; set folds, too")
        elif self.fold is not None and self.folds is not None and self.fold > self.folds:
            problems.append(f"fold={self.fold} must be at most folds={self.folds}")
        if self.folds is not None and self.val_share:
            problems.append("folds and val_share both give validation data; leave one out")
        return problems


@dataclasses.dataclass(frozen=True)
class TrialSettings(StrictConfig):
    """Trial runs before training.

    Args:
        auto: choose settings that are not given by short runs on a part of the training data,
            evaluated on another part of it: quick: the most important setting, in at most 15 % of
            the estimated time or of max_time; full: more settings, in at most 50 %; off; null: off.
    """

    heading: ClassVar[str] = "trials"

    auto: str | None = option(None, choices=("quick", "full", "off"))


@dataclasses.dataclass(frozen=True)
class BudgetSettings(StrictConfig):
    """Limits of a run.

    Args:
        max_epochs: maximum passes over the training data; null: 10, or no limit with max_steps or
            max_time.
        max_steps: maximum optimizer steps; null: no limit.
        max_time: maximum training time, such as 90s, 10m or 1h30m; the learning-rate schedule
            follows the clock; null: no limit.
        memory_limit: memory limit of the process, such as 4GB. Sets the micro-batch size and
            activation checkpointing to fit. null: no limit.
    """

    heading: ClassVar[str] = "budgets"

    max_epochs: int | None = option(None, low=1)
    max_steps: int | None = option(None, low=1)
    max_time: str | None = option(None, example="90s, 10m or 1h30m")
    memory_limit: str | None = option(None, example="500MB or 4GB")

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if self.max_time is not None and self.max_seconds is None:
            problems.append(
                f"max_time must be a time such as 90s, 10m or 1h30m, not {self.max_time!r}"
            )
        if self.memory_limit is not None and parse_bytes(self.memory_limit) is None:
            problems.append(
                f"memory_limit must be a size such as 500MB or 4GB, not {self.memory_limit!r}"
            )
        return problems

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds; None: not set or invalid."""
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", self.max_time or "")
        if not parts or "".join(number + unit for number, unit in parts) != self.max_time:
            return None
        return sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts) or None

    @property
    def effective_max_epochs(self) -> int | None:
        """Maximum passes over the training data; None: another limit ends the run."""
        if self.max_epochs is None and self.max_steps is None and self.max_time is None:
            return 10
        return self.max_epochs


@dataclasses.dataclass(frozen=True)
class HardwareSettings(StrictConfig):
    """Devices, precision and speed.

    Args:
        accelerator: cpu, cuda, mps, or auto: the fastest that is available.
        devices: processes on this machine, one per device.
        num_nodes: number of machines; torchrun starts the processes on each.
        strategy: ddp: replicated model; fsdp2: sharded model; deepspeed: ZeRO (needs CUDA and the
            extra miniformer[deepspeed]); null: ddp for several devices.
        precision: float32 or bf16 (mixed precision); auto: bf16 where it is fast (GPUs with bf16,
            CPUs with AVX512-BF16 or AMX), else float32.
        compile: compile the layers with torch.compile and report when the time is regained.
        activation_checkpointing: activations stored for the backward pass: none: all of them;
            selective: matrix products and attention; full: the input of each layer. The others are
            recomputed; gradients are the same.
        find_batch_size: measure batch sizes first and use the one with the most tokens per second.
        deterministic: refuse operations that are not deterministic on a GPU.
        threads: threads of an operation on the CPU; more than the cores that are free are slow;
            null: torch's default, one for each core.
    """

    heading: ClassVar[str] = "hardware"

    accelerator: str = option("auto", choices=("auto", "cpu", "cuda", "mps"))
    devices: int = option(1, low=1)
    num_nodes: int = option(1, low=1)
    strategy: str | None = option(None, choices=("ddp", "fsdp2", "deepspeed"))
    precision: str = option("auto", choices=("auto", "float32", "bf16"))
    compile: bool = option(False)
    activation_checkpointing: str = option("none", choices=("none", "selective", "full"))
    find_batch_size: bool = option(False)
    deterministic: bool = option(False)
    threads: int | None = option(None, low=1, high=4096)

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        if self.strategy is not None and self.world_size == 1:
            problems.append(
                f"strategy={self.strategy} is for several devices; set devices or num_nodes, "
                "or leave it out"
            )
        return problems

    @property
    def world_size(self) -> int:
        """Number of devices on all machines."""
        return self.devices * self.num_nodes


@dataclasses.dataclass(frozen=True)
class OutputSettings(StrictConfig):
    """Run folder, checkpoints, loggers and callbacks.

    Args:
        work_dir: folder for run folders.
        experiment_name: name of the run folder; a number is appended if it exists; null: the task.
        resume: run folder to resume. Other flags change settings of the run, such as a larger
            max_steps; those that would make it another run are refused. auto: the newest unfinished
            run of this experiment_name, if its settings are the same, or else a new run.
        checkpoint_interval: optimizer steps between checkpoints for resuming; null: at each
            validation, and in between as often as 2 % of the time allows.
        logger: tensorboard, csv, none, or wandb or mlflow, which need the extra of their name.
        callbacks: Lightning callbacks with their options, such as
            [{"type": "my_package.callbacks:EveryN", "n": 5}], by the name of a registered callback
            or by import path; each process of a run has its own; null: none.
    """

    heading: ClassVar[str] = "output"

    work_dir: str = option("runs")
    experiment_name: str | None = option(None)
    resume: str | None = option(None)
    checkpoint_interval: int | None = option(None, low=1)
    logger: str = option("tensorboard", kind="logger")
    callbacks: list[dict[str, Any] | str] | None = option(None, kind="callback", paths=True)

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        name = self.experiment_name
        if name is not None and (reason := name_problem(name)) is not None:
            problems.append(
                f"experiment_name must be the name of a folder in work_dir, not {name!r}: {reason}"
            )
        return problems
