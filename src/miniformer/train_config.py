"""TrainConfig: everything that decides a training run; each field is a flag."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from miniformer.config import StrictConfig, option

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True)
class TrainConfig(StrictConfig):
    """A training run.

    Args:
        train_path: data to train on: .jsonl with one record a line, or .txt for language modelling;
            either packed as .gz or .zst; a pattern such as 'data/*.jsonl'; or a list of these.
        val_path: data to validate on, of the same kind; null: no validation.
        test_path: data to test the best model on at the end; null: no test.
        task: what to learn, and from which records: language_modeling {"text"}, classification
            {"input", "label"}, regression {"input", "value"}, seq2seq {"source", "target"}; an
            input is a string, two strings, or a list of vectors.
        task_config: options of the task, such as {"label_smoothing": 0.1}.
        model: encoder: the Transformer class (causal for language modelling); seq2seq: the
            Seq2SeqTransformer class; null: seq2seq for task seq2seq, else encoder.
        model_config: fields of TransformerConfig; those that follow from task, data and tokenizer,
            such as causal, output_dim and vocab_size, can be left out.
        init_from: model directory that the run begins with, such as one from `miniformer import`:
            its shape, tokenizer and weights; null: weights are random.
        tokenizer: bpe (byte-level), unigram, wordpiece, byte or char, trained on train_path; or the
            path of a tokenizer.json, of a Hugging Face directory or of a model directory.
        source_tokenizer: the same for the sources of seq2seq, where they have a vocabulary of their
            own, as large as source_vocab_size in model_config; null: one serves both.
        batch_size: windows in a batch; where batches are of like lengths, examples on average.
        batch_tokens: tokens in a batch at most, padding included; null: as many as batch_size
            gives.
        seq_len: tokens in a window, or of an input and of a target at most; null: the model's
            max_seq_len.
        lr: learning rate at its highest.
        weight_decay: decoupled decay of weight matrices; biases, norms and embeddings have none.
        scheduler: how the learning rate goes down: cosine, onecycle, linear, wsd, none.
        warmup_steps: optimiser steps in which it first goes up; null: 5 % of the run, or onecycle's
            own.
        max_epochs: passes over the training data; null: 10 unless max_steps or max_time is set.
        max_steps: optimiser steps at most.
        max_time: time at most, as 90s, 10m, 1h30m; the learning rate follows the clock.
        val_interval: optimiser steps between validations; null: five times over the run.
        optimizer: adamw.
        gradient_clip_val: longest gradient (its norm); 0: any.
        accumulate_grad_batches: batches in one optimiser step, as one large batch.
        activation_checkpointing: what a training pass keeps for the backward pass: none:
            everything; selective: matrix products and attention; full: each layer's input, and
            computes the rest again. The gradients are the same.
        precision: float32, or bf16 (mixed); auto: bf16 on GPUs that have it, else float32.
        accelerator: cpu, cuda, mps, or auto: the best there is.
        num_workers: processes that read and encode data too large to be kept in memory; 0: a thread
            of the training process.
        streaming: read train_path front to back as it comes, such as from a pipe ("-" is standard
            input), shuffled among neighbours only.
        seed: decides initial weights, order of the data and dropout.
        deterministic: refuse operations that may differ from run to run on a GPU.
        work_dir: folder for runs.
        experiment_name: the run's folder within work_dir; null: the task's name. A number is added
            if it exists.
        logger: tensorboard, csv, wandb (needs the extra miniformer[wandb]), none.
        checkpoint_metric: validation figure that tells the best model, such as accuracy; null:
            loss.
        early_stopping_patience: validations without a better checkpoint_metric before the run
            stops; null: never.
    """

    train_path: list[str] | str = ""
    val_path: list[str] | str | None = None
    test_path: list[str] | str | None = None
    task: str = option("language_modeling", of="task")
    task_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str | None = option(None, choices=("encoder", "seq2seq"))
    model_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    tokenizer: str = "bpe"
    source_tokenizer: str | None = None
    batch_size: int = option(16, low=1)
    batch_tokens: int | None = option(None, low=1)
    seq_len: int | None = option(None, low=1)
    lr: float = option(1e-3, low=0.0)
    weight_decay: float = option(0.1, low=0.0)
    scheduler: str = option("cosine", of="scheduler")
    warmup_steps: int | None = option(None, low=0)
    max_epochs: int | None = option(None, low=1)
    max_steps: int | None = option(None, low=1)
    max_time: str | None = None
    val_interval: int | None = option(None, low=1)
    optimizer: str = option("adamw", of="optimizer")
    gradient_clip_val: float = option(1.0, low=0.0)
    accumulate_grad_batches: int = option(1, low=1)
    activation_checkpointing: str = option("none", choices=("none", "selective", "full"))
    precision: str = option("auto", choices=("auto", "float32", "bf16"))
    accelerator: str = option("auto", choices=("auto", "cpu", "cuda", "mps"))
    num_workers: int = option(0, low=0)
    streaming: bool = False
    seed: int = option(0, low=0, high=2**32 - 1)
    deterministic: bool = False
    work_dir: str = "runs"
    experiment_name: str | None = None
    logger: str = option("tensorboard", of="logger")
    checkpoint_metric: str | None = None
    early_stopping_patience: int | None = option(None, low=1)

    def changed(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = self.to_dict().items()
        return {name: value for name, value in values if value and value != defaults[name]}

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        problems = []
        if not self.train_path:
            problems.append("train_path is missing: name a .jsonl or .txt file to train on")
        if self.scheduler == "onecycle" and self.warmup_steps is not None:
            problems.append(
                "warmup_steps has no effect with scheduler=onecycle, which warms up itself; "
                "leave it out"
            )
        if self.early_stopping_patience is not None and self.val_path is None:
            problems.append(
                "early_stopping_patience needs val_path, the data on which the loss is watched"
            )
        if self.val_interval is not None and self.val_path is None:
            problems.append("val_interval needs val_path, the data to validate on")
        if self.checkpoint_metric is not None and self.val_path is None:
            problems.append("checkpoint_metric needs val_path, the data on which it is measured")
        if self.init_from is not None and self.tokenizer not in ("bpe", self.init_from):
            problems.append("tokenizer has no effect with init_from, which has one; leave it out")
        if self.streaming and self.max_steps is None and self.max_time is None:
            problems.append(
                "streaming needs max_steps or max_time: nobody knows how long the stream is"
            )
        if self.max_time is not None and self.max_seconds is None:
            problems.append(
                f"max_time must be a time such as 90s, 10m or 1h30m, not {self.max_time!r}"
            )
        return problems

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds; None where it is not set or not a time."""
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", self.max_time or "")
        if not parts or "".join(number + unit for number, unit in parts) != self.max_time:
            return None
        return sum(float(number) * _UNITS[unit] for number, unit in parts) or None

    @property
    def epochs(self) -> int | None:
        """Passes over the training text at most; None: another limit ends the run."""
        if self.max_epochs is None and self.max_steps is None and self.max_time is None:
            return 10
        return self.max_epochs
