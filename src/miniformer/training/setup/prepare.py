"""What a run needs before it begins: a machine, data, a tokenizer, a model, a folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from miniformer import registry
from miniformer.checkpoint.artifacts import MODEL_CLASSES, read_task
from miniformer.config import ConfigError, NoEffectWarning, TransformerConfig, UserError
from miniformer.config.size_presets import SIZE_PRESETS
from miniformer.data.batching.loader import BatchLoader
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.data.rules import fit_task
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.ops.activation_checkpointing import saved_activation_bytes
from miniformer.model.stack import set_activation_checkpointing
from miniformer.tasks.base import Task
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.progress import progress_bars
from miniformer.training.distributed.launcher import broadcast_from_rank0
from miniformer.training.optim.optimizers import check_optimizer_options, default_lr
from miniformer.training.setup.init_from import config_from_pretrained, load_pretrained_weights
from miniformer.training.setup.tokenizers import load_run_tokenizer, make_tokenizer
from miniformer.training.tuning.data_defaults import (
    DEFAULT_BATCH_SIZE,
    count_dataset_tokens,
    with_default_batch_size,
    with_default_model_size,
)
from miniformer.training.tuning.hardware import has_fast_bf16
from miniformer.training.tuning.lr_finder import LRFinderResult


@dataclasses.dataclass
class RunSetup:
    """A run that could begin.

    Args:
        config: its settings, with what they leave to `init_from` filled in.
        kind: of model: encoder or seq2seq.
        task: knows its training data.
        metric: the figure that tells the best model, without the `val_` before it.
        data: set up.
        model: with its first weights.
        model_config: its config.
        tokenizer: None: the task reads no text.
        described: a line about the tokenizer.
        seq_len: tokens in a window, or of an input and of a target at most.
        origin: the model directory that it begins with.
        predicted_memory: bytes that the process may come to need, where that was planned.
        lr_search: how the learning rate was found, where it was.
    """

    config: TrainConfig
    kind: str
    task: Task
    metric: str
    data: MiniFormerDataModule
    model: Any
    model_config: TransformerConfig
    tokenizer: Tokenizer | None
    tokenizer_summary: str | None
    seq_len: int
    pretrained_path: Path | None
    predicted_memory: int | None = None
    lr_search: LRFinderResult | None = None


def prepare(config: TrainConfig, console: Console, *, resume_dir: Path | None = None) -> RunSetup:
    """Reads the data and builds the model; nothing is written.

    Args:
        config: the run.
        console: where to tell of it.
        resumed: the folder of a run that goes on, whose tokenizer is used.

    Raises:
        UserError: a setting, a path or a record is wrong.
    """
    kind: str = config.model or registry.get("task", config.task).models[0]
    if kind == "decoder":  # the class is the same
        kind = "encoder"
        config = dataclasses.replace(config, model_config={**config.model_config, "causal": True})
    if resume_dir is None:
        config = config_from_pretrained(config, kind)
    if config.lr is None:
        anew = config.init_from is None and config.pretrain is None
        lr = default_lr(config.optimizer, from_scratch=anew)
        config = dataclasses.replace(config, lr=lr)
    task = (
        build_task(config, kind) if resume_dir is None else load_run_task(resume_dir, config, kind)
    )
    metric = _checkpoint_metric(config, task)
    notes = list(task.pre_run_warnings(metric)) if config.val_path or config.test_path else []
    check_environment(config)
    check_optimizer_options(config.optimizer, config.optimizer_config)
    # Every mistake that can be seen without reading the data is told before it is read.
    given = {**SIZE_PRESETS.get(config.model_size or "", {}), **config.model_config}
    limit = TransformerConfig.from_dict(given).max_seq_len
    seq_len = config.seq_len or limit
    if seq_len > limit:
        raise UserError(
            f"seq_len={seq_len} is longer than the model's max_seq_len={limit}; "
            f"lower seq_len or set max_seq_len={seq_len} in model_config"
        )
    with progress_bars(console) as progress:
        records = None
        if not config.streaming:
            records = as_records(config.train_path, task.schema, progress=progress)
            task = fit_task(task, records)
        if config.sample_prompt is not None and not (task.reads_text() and _generates_text(task)):
            raise UserError(
                f"sample_prompt has no effect: task={config.task} writes no text; leave it out"
            )
        others = {
            name: path and as_records(path, task.schema, progress=progress)
            for name, path in (("val_path", config.val_path), ("test_path", config.test_path))
        }
        if resume_dir is None:  # of several devices one trains it: not all kinds come out alike
            tokenizer, described = broadcast_from_rank0(
                lambda: make_tokenizer(config, task, records)
            )
        else:
            tokenizer, described = load_run_tokenizer(resume_dir)
        if described is not None:
            console.print(f"tokenizer: {described}")
        task.check(TransformerConfig.from_dict(task.model_config(given, tokenizer)), tokenizer)
        data = MiniFormerDataModule(
            records or config.train_path,
            **others,
            tokenizer=tokenizer,
            task=task,
            batch_size=config.batch_size or DEFAULT_BATCH_SIZE,
            batch_tokens=config.batch_tokens,
            seq_len=seq_len,
            num_workers=config.num_workers,
            streaming=config.streaming,
            seed=config.seed,
            progress=progress,
        )
        data.setup()
    config, batched = with_default_batch_size(config, data)
    config, sized = with_default_model_size(config, data)
    model_config = TransformerConfig.from_dict(task.model_config(config.model_config, tokenizer))
    found = list(task.data_warnings())
    shown = others["val_path"] or records
    if tokenizer is not None and shown is not None:
        found += task.tokenizer_warnings(tokenizer, shown)
    for line in (*_data_summary(data), *notes, *found, *filter(None, [batched, sized])):
        console.print(line)
    model = MODEL_CLASSES[kind](model_config)
    origin = None if config.init_from is None else Path(config.init_from)
    if origin is not None and resume_dir is None:
        new = load_pretrained_weights(model, origin, kind)
        console.print(f"weights: of {origin}" + (f"; new: {', '.join(new)}" if new else ""))
    console.print(f"model: {model_config.num_params(seq2seq=kind == 'seq2seq'):,} parameters")
    return RunSetup(
        config=config,
        kind=kind,
        task=task,
        metric=metric,
        data=data,
        model=model,
        model_config=model_config,
        tokenizer=tokenizer,
        tokenizer_summary=described,
        seq_len=seq_len,
        pretrained_path=origin,
    )


def build_task(config: TrainConfig, kind: str) -> Task:
    """The task as that kind of model learns it."""
    try:
        task: Task = registry.get("task", config.task).from_dict(config.task_config)
    except ConfigError as error:
        raise UserError(f"task_config: {error}") from None
    return task.for_model(kind)


def load_run_task(run_dir: Path, config: TrainConfig, kind: str) -> Task:
    """The task of a run that goes on, with what it knew of its training data.

    A run that an earlier version began has no task.json of its own; its best model has one.
    """
    for folder in (run_dir, run_dir / "best", run_dir / "last"):
        if (folder / "task.json").is_file():
            return read_task(folder / "task.json", kind)
    return build_task(config, kind)


def _generates_text(task: Task) -> bool:
    return type(task).generate_text is not Task.generate_text


def _checkpoint_metric(config: TrainConfig, task: Task) -> str:
    """The figure that tells the best model, without the `val_` before it."""
    metric = (config.checkpoint_metric or task.metrics[0]).removeprefix("val_")
    if metric not in task.metrics:
        raise UserError(
            registry.unknown_name_message("checkpoint_metric", metric, list(task.metrics))
        )
    return metric


def _data_summary(data: MiniFormerDataModule) -> Iterator[str]:
    """Lines about the data: how much there is, and what of it does not fit."""
    for name, words in (("train", "training"), ("val", "validation"), ("test", "test")):
        pools = data.chunks.get(name)
        if pools is None:
            continue
        tokens = count_dataset_tokens(data, name)
        records = getattr(pools, "records", None)
        many = "a stream" if records is None else f"{len(records):,} records"
        yield f"{words} data: {many}" + (f", {tokens:,} tokens" if tokens else "")
        if cut := data.truncation_warning(name):
            yield cut
    if data.num_workers and getattr(data.chunks["train"], "in_memory", None) is not None:
        warnings.warn(
            f"num_workers={data.num_workers} has no effect: the training data is small and kept in "
            "memory",
            NoEffectWarning,
            stacklevel=2,
        )
    if data.val_path is None:
        yield "no val_path: losses shown are those of the training data"


def check_environment(config: TrainConfig) -> None:
    """Refuses what this machine does not have."""
    name = config.accelerator
    missing = (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(f"accelerator={name} is not to be had on this machine; use cpu or auto")
    for name in ("wandb", "mlflow"):
        if config.logger == name and importlib.util.find_spec(name) is None:
            raise UserError(
                f'logger={name} needs the package {name}; pip install "miniformer[{name}]", '
                "or use tensorboard, csv or none"
            )


def resolve_device_type(config: TrainConfig) -> str:
    """The kind of device that the run's accelerator means here: cpu, cuda or mps."""
    if config.accelerator != "auto":
        return config.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(config: TrainConfig) -> str:
    """float32 or bf16: what the config says, or what is fast here."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if has_fast_bf16(resolve_device_type(config)) else "float32"


def enable_activation_checkpointing(model: Any, mode: str, task: Task, batches: BatchLoader) -> str:
    """Turns activation checkpointing on; returns what it saves, measured on a batch."""
    batch, kept = next(iter(batches)), []
    for each in ("none", mode):
        set_activation_checkpointing(model, each)
        with torch.random.fork_rng():  # the run's own random numbers stay as they were
            kept.append(saved_activation_bytes(lambda: task.loss(model, batch)[0]))
    before, after = (f"{size / 1e6:,.1f} MB" for size in kept)
    return f"kept for the backward pass of a batch: {after}, {before} without checkpointing"
