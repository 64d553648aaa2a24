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
from miniformer.checkpoint.companions import MODELS, read_task
from miniformer.config import ConfigError, NoEffectWarning, TransformerConfig, UserError
from miniformer.config.presets import SIZES
from miniformer.data.batches import Batches
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.records import records_of
from miniformer.data.rules import fitted
from miniformer.data.tokenizer import Tokenizer
from miniformer.model.checkpointing import kept_bytes
from miniformer.model.stack import set_activation_checkpointing
from miniformer.tasks.task import Task
from miniformer.train_config import TrainConfig
from miniformer.training.beginning import begin_with, take_weights
from miniformer.training.finding import LrSearch
from miniformer.training.launch import from_first
from miniformer.training.machine import fast_bf16
from miniformer.training.optimizers import check_options, own_lr
from miniformer.training.progress import reading
from miniformer.training.sizing import USUAL_BATCH, tokens_of, with_batches, with_size
from miniformer.training.tokenizers import make_tokenizer, tokenizer_of


@dataclasses.dataclass
class Prepared:
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
    described: str | None
    seq_len: int
    origin: Path | None
    predicted_memory: int | None = None
    lr_search: LrSearch | None = None


def prepare(config: TrainConfig, console: Console, *, resumed: Path | None = None) -> Prepared:
    """Reads the data and builds the model; nothing is written.

    Args:
        config: the run.
        console: where to tell of it.
        resumed: the folder of a run that goes on, whose tokenizer is used.

    Raises:
        UserError: a setting, a path or a record is wrong.
    """
    kind: str = config.model or registry.get("task", config.task).models[0]
    if resumed is None:
        config = begin_with(config, kind)
    if config.lr is None:
        anew = config.init_from is None and config.warm_start is None
        lr = own_lr(config.optimizer, begins_anew=anew)
        config = dataclasses.replace(config, lr=lr)
    task = task_of(config, kind) if resumed is None else task_of_run(resumed, config, kind)
    metric = _metric(config, task)
    notes = list(task.notes(metric)) if config.val_path or config.test_path else []
    check_machine(config)
    check_options(config.optimizer, config.optimizer_config)
    # Every mistake that can be seen without reading the data is told before it is read.
    given = {**SIZES.get(config.size or "", {}), **config.model_config}
    limit = TransformerConfig.from_dict(given).max_seq_len
    seq_len = config.seq_len or limit
    if seq_len > limit:
        raise UserError(
            f"seq_len={seq_len} is longer than the model's max_seq_len={limit}; "
            f"lower seq_len or set max_seq_len={seq_len} in model_config"
        )
    with reading(console) as progress:
        records = None
        if not config.streaming:
            records = records_of(config.train_path, task.schema, progress=progress)
            task = fitted(task, records)
        if config.sample_prompt is not None and not (task.reads_text() and _writes_text(task)):
            raise UserError(
                f"sample_prompt has no effect: task={config.task} writes no text; leave it out"
            )
        others = {
            name: path and records_of(path, task.schema, progress=progress)
            for name, path in (("val_path", config.val_path), ("test_path", config.test_path))
        }
        if resumed is None:  # of several devices one trains it: not all kinds come out alike
            tokenizer, described = from_first(lambda: make_tokenizer(config, task, records))
        else:
            tokenizer, described = tokenizer_of(resumed)
        if described is not None:
            console.print(f"tokenizer: {described}")
        task.check(TransformerConfig.from_dict(task.model_config(given, tokenizer)), tokenizer)
        data = MiniFormerDataModule(
            records or config.train_path,
            **others,
            tokenizer=tokenizer,
            task=task,
            batch_size=config.batch_size or USUAL_BATCH,
            batch_tokens=config.batch_tokens,
            seq_len=seq_len,
            num_workers=config.num_workers,
            streaming=config.streaming,
            seed=config.seed,
            progress=progress,
        )
        data.setup()
    config, batched = with_batches(config, data)
    config, sized = with_size(config, data)
    model_config = TransformerConfig.from_dict(task.model_config(config.model_config, tokenizer))
    found = list(task.findings())
    shown = others["val_path"] or records
    if tokenizer is not None and shown is not None:
        found += task.tokenizer_findings(tokenizer, shown)
    for line in (*_about(data), *notes, *found, *filter(None, [batched, sized])):
        console.print(line)
    model = MODELS[kind](model_config)
    origin = None if config.init_from is None else Path(config.init_from)
    if origin is not None and resumed is None:
        new = take_weights(model, origin, kind)
        console.print(f"weights: of {origin}" + (f"; new: {', '.join(new)}" if new else ""))
    console.print(f"model: {model_config.num_params(seq2seq=kind == 'seq2seq'):,} parameters")
    return Prepared(
        config=config,
        kind=kind,
        task=task,
        metric=metric,
        data=data,
        model=model,
        model_config=model_config,
        tokenizer=tokenizer,
        described=described,
        seq_len=seq_len,
        origin=origin,
    )


def task_of(config: TrainConfig, kind: str) -> Task:
    """The task as that kind of model learns it."""
    try:
        task: Task = registry.get("task", config.task).from_dict(config.task_config)
    except ConfigError as error:
        raise UserError(f"task_config: {error}") from None
    return task.for_model(kind)


def task_of_run(run: Path, config: TrainConfig, kind: str) -> Task:
    """The task of a run that goes on, with what it knew of its training data.

    A run that an earlier version began has no task.json of its own; its best model has one.
    """
    for folder in (run, run / "best", run / "last"):
        if (folder / "task.json").is_file():
            return read_task(folder / "task.json", kind)
    return task_of(config, kind)


def _writes_text(task: Task) -> bool:
    return type(task).answer is not Task.answer


def _metric(config: TrainConfig, task: Task) -> str:
    """The figure that tells the best model, without the `val_` before it."""
    metric = (config.checkpoint_metric or task.metrics[0]).removeprefix("val_")
    if metric not in task.metrics:
        raise UserError(registry.unknown("checkpoint_metric", metric, list(task.metrics)))
    return metric


def _about(data: MiniFormerDataModule) -> Iterator[str]:
    """Lines about the data: how much there is, and what of it does not fit."""
    for name, words in (("train", "training"), ("val", "validation"), ("test", "test")):
        pools = data.pools.get(name)
        if pools is None:
            continue
        tokens = tokens_of(data, name)
        records = getattr(pools, "records", None)
        many = "a stream" if records is None else f"{len(records):,} records"
        yield f"{words} data: {many}" + (f", {tokens:,} tokens" if tokens else "")
        if cut := data.cut(name):
            yield cut
    if data.num_workers and getattr(data.pools["train"], "kept", None) is not None:
        warnings.warn(
            f"num_workers={data.num_workers} has no effect: the training data is small and kept in "
            "memory",
            NoEffectWarning,
            stacklevel=2,
        )
    if data.val_path is None:
        yield "no val_path: losses shown are those of the training data"


def check_machine(config: TrainConfig) -> None:
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


def device_type(config: TrainConfig) -> str:
    """The kind of device that the run's accelerator means here: cpu, cuda or mps."""
    if config.accelerator != "auto":
        return config.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def precision(config: TrainConfig) -> str:
    """float32 or bf16: what the config says, or what is fast here."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if fast_bf16(device_type(config)) else "float32"


def checkpoint(model: Any, how: str, task: Task, batches: Batches) -> str:
    """Turns activation checkpointing on; returns what it saves, measured on a batch."""
    batch, kept = next(iter(batches)), []
    for each in ("none", how):
        set_activation_checkpointing(model, each)
        with torch.random.fork_rng():  # the run's own random numbers stay as they were
            kept.append(kept_bytes(lambda: task.loss(model, batch)[0]))
    before, after = (f"{size / 1e6:,.1f} MB" for size in kept)
    return f"kept for the backward pass of a batch: {after}, {before} without checkpointing"
