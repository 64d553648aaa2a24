"""Prepares a run: environment checks, data, tokenizer, model."""

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
from miniformer.config.resolved import ResolvedSetting
from miniformer.config.size_presets import SIZE_PRESETS
from miniformer.config.train_settings import HardwareSettings
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.data.rules import fit_task
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import Task
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.progress import progress_bars
from miniformer.training.distributed.launcher import broadcast_from_rank0
from miniformer.training.optim.optimizers import check_optimizer_options
from miniformer.training.setup.init_from import config_from_pretrained, load_pretrained_weights
from miniformer.training.setup.resolve import resolve_device_type, resolve_precision
from miniformer.training.setup.tokenizers import load_run_tokenizer, make_tokenizer
from miniformer.training.tuning.data_defaults import (
    DEFAULT_BATCH_SIZE,
    given_task_options,
    resolve_batch_size,
    resolve_checkpoint_metric,
    resolve_lr,
    resolve_model_size,
    resolve_task_options,
)
from miniformer.training.tuning.lr_finder import LRFinderResult


@dataclasses.dataclass
class RunSetup:
    """Everything that training needs.

    Args:
        config: the run's config, with the settings that `init_from` and the data determine.
        device_type: cpu, cuda or mps.
        precision: float32 or bf16.
        kind: kind of model: encoder or seq2seq.
        task: the task, fitted to its training data.
        metric: metric of the best model, without the prefix `val_`.
        data: the datamodule, set up.
        model: the model with its initial weights.
        model_config: config of the model.
        tokenizer: the tokenizer; None: the task reads no text.
        tokenizer_summary: one line about the tokenizer.
        seq_len: tokens of a window, or maximum tokens of an input and of a target.
        pretrained_path: the model directory of `init_from`.
        predicted_memory: predicted peak memory of the process in bytes; None: not predicted.
        lr_search: result of the learning rate finder; None: not used.
    """

    config: TrainConfig
    device_type: str
    precision: str
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

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.experiment_name or self.config.task

    @property
    def hardware(self) -> HardwareSettings:
        """Devices of the run."""
        return self.config.part(HardwareSettings)

    def changed_settings(self) -> dict[str, Any]:
        """Settings that differ from their defaults."""
        return self.config.non_default_fields()


def prepare(config: TrainConfig, console: Console) -> RunSetup:
    """Reads the data and builds the model; writes nothing.

    Args:
        config: the run; one that resumes has the tokenizer and the task of its folder.
        console: output for progress messages.

    Raises:
        UserError: a setting, a path or a record is invalid.
    """
    resume_dir = None if config.resume is None else Path(config.resume)
    device_type = resolve_device_type(config)
    precision = resolve_precision(config, device_type)
    kind: str = config.model or registry.get("task", config.task).models[0]
    if kind == "decoder":  # the class is the same
        kind = "encoder"
        config = dataclasses.replace(config, model_config={**config.model_config, "causal": True})
    if resume_dir is None:
        config = config_from_pretrained(config, kind)
    resolved: list[ResolvedSetting] = []
    if config.lr is None:
        from_scratch = config.init_from is None and config.pretrain is None
        resolved.append(resolve_lr(config.optimizer, from_scratch=from_scratch))
        config = apply_settings(config, resolved)
    stored_task = None if resume_dir is None else load_run_task(resume_dir, kind)
    task = build_task(config, kind) if stored_task is None else stored_task
    metric = _checkpoint_metric(config, task)
    notes = list(task.pre_run_warnings(metric)) if config.val_path or config.test_path else []
    check_environment(config)
    check_optimizer_options(config.optimizer, config.optimizer_config)
    # Errors that do not depend on the data are raised before the data is read.
    model_fields = {**SIZE_PRESETS.get(config.model_size or "", {}), **config.model_config}
    max_seq_len = TransformerConfig.from_dict(model_fields).max_seq_len
    seq_len = config.seq_len or max_seq_len
    if seq_len > max_seq_len:
        raise UserError(
            f"seq_len={seq_len} is longer than the model's max_seq_len={max_seq_len}; "
            f"lower seq_len or set max_seq_len={seq_len} in model_config"
        )
    with progress_bars(console) as progress:
        records = None
        if not config.streaming:
            records = as_records(config.train_path, task.schema, progress=progress)
            task = fit_task(task, records)
        if stored_task is None:
            task, options = resolve_task_options(task, config.task_config, records)
            config = apply_settings(config, options)
            resolved += options
        if config.sample_prompt is not None and not (task.reads_text() and _generates_text(task)):
            raise UserError(
                f"sample_prompt has no effect: task={config.task} generates no text; leave it out"
            )
        eval_records = {
            name: path and as_records(path, task.schema, progress=progress)
            for name, path in (("val_path", config.val_path), ("test_path", config.test_path))
        }
        if resume_dir is None:  # rank 0 trains it: training is not deterministic for all kinds
            tokenizer, summary, options = broadcast_from_rank0(
                lambda: make_tokenizer(config, task, records)
            )
            config = apply_settings(
                config, [setting for setting in options if setting.name == "source_tokenizer"]
            )
            resolved += options
        else:
            tokenizer, summary = load_run_tokenizer(resume_dir)
        if summary is not None:
            console.print(f"tokenizer: {summary}")
        task.check(
            TransformerConfig.from_dict(task.model_config(model_fields, tokenizer)), tokenizer
        )
        data = MiniFormerDataModule(
            records or config.train_path,
            **eval_records,
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
    if config.batch_size is None:
        options = resolve_batch_size(data, config.batch_tokens, config.world_size)
        config = dataclasses.replace(config, batch_size=DEFAULT_BATCH_SIZE)
        config = apply_settings(config, options)
        resolved += [] if config.find_batch_size else options
        data.batch_size, data.batch_tokens = config.batch_size or 0, config.batch_tokens
    model_size = resolve_model_size(config, data)
    size = config.model_size if model_size is None else model_size.value
    resolved += [] if model_size is None else [model_size]
    if size is not None and config.init_from is None:
        config = dataclasses.replace(
            config, model_config={**SIZE_PRESETS[size], **config.model_config}
        )
    model_config = TransformerConfig.from_dict(task.model_config(config.model_config, tokenizer))
    warning_lines = list(task.data_warnings())
    sample = eval_records["val_path"] or records
    if tokenizer is not None and sample is not None:
        warning_lines += task.tokenizer_warnings(tokenizer, sample)
    for line in (*_data_summary(data), *notes, *warning_lines, *resolved):
        console.print(str(line))
    model = MODEL_CLASSES[kind](model_config)
    pretrained_path = None if config.init_from is None else Path(config.init_from)
    if pretrained_path is not None and resume_dir is None:
        new = load_pretrained_weights(model, pretrained_path, kind)
        suffix = f"; newly initialized: {', '.join(new)}" if new else ""
        console.print(f"weights: from {pretrained_path}{suffix}")
    console.print(f"model: {model_config.num_params(seq2seq=kind == 'seq2seq'):,} parameters")
    return RunSetup(
        config=config,
        device_type=device_type,
        precision=precision,
        kind=kind,
        task=task,
        metric=metric,
        data=data,
        model=model,
        model_config=model_config,
        tokenizer=tokenizer,
        tokenizer_summary=summary,
        seq_len=seq_len,
        pretrained_path=pretrained_path,
    )


def build_task(config: TrainConfig, kind: str) -> Task:
    """Builds the task for a kind of model."""
    try:
        options = given_task_options(config.task_config)
        task: Task = registry.get("task", config.task).from_dict(options)
    except ConfigError as error:
        raise UserError(f"task_config: {error}") from None
    return task.for_model(kind)


def load_run_task(run_dir: Path, kind: str) -> Task | None:
    """Loads the fitted task of a run folder; None: the run has not saved it.

    Run folders of earlier versions have a task.json only in their model directories.
    """
    for folder in (run_dir, run_dir / "best", run_dir / "last"):
        if (folder / "task.json").is_file():
            return read_task(folder / "task.json", kind)
    return None


def apply_settings(config: TrainConfig, settings: list[ResolvedSetting]) -> TrainConfig:
    """Sets fields, and with a dot in the name keys of `task_config`."""
    for setting in settings:
        name, _, key = setting.name.partition(".")
        value: Any = {**getattr(config, name), key: setting.value} if key else setting.value
        config = dataclasses.replace(config, **{name: value})
    return config


def _generates_text(task: Task) -> bool:
    return type(task).generate_text is not Task.generate_text


def _checkpoint_metric(config: TrainConfig, task: Task) -> str:
    """Metric of the best model, without the prefix `val_`."""
    metric = config.checkpoint_metric or resolve_checkpoint_metric(task).value
    metric = metric.removeprefix("val_")
    if metric not in task.metrics:
        raise UserError(
            registry.unknown_name_message("checkpoint_metric", metric, list(task.metrics))
        )
    return metric


def _data_summary(data: MiniFormerDataModule) -> Iterator[str]:
    """Yields lines about the data: record and token counts, truncation."""
    for split, label in (("train", "training"), ("val", "validation"), ("test", "test")):
        chunks = data.chunks.get(split)
        if chunks is None:
            continue
        tokens = data.num_tokens(split)  # None: not all are in memory
        records = getattr(chunks, "records", None)
        count = "a stream" if records is None else f"{len(records):,} records"
        yield f"{label} data: {count}" + (f", {tokens:,} tokens" if tokens else "")
        if warning := data.truncation_warning(split):
            yield warning
    if data.num_workers and getattr(data.chunks["train"], "in_memory", None) is not None:
        warnings.warn(
            f"num_workers={data.num_workers} has no effect: the training data is in memory",
            NoEffectWarning,
            stacklevel=2,
        )
    if data.val_path is None:
        yield "no val_path: only the training loss is reported"


def check_environment(config: TrainConfig) -> None:
    """Checks that the accelerator and the logger are available.

    Raises:
        UserError: one is not.
    """
    name = config.accelerator
    missing = (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(f"accelerator={name} is not available on this machine; use cpu or auto")
    for name in ("wandb", "mlflow"):
        if config.logger == name and importlib.util.find_spec(name) is None:
            raise UserError(
                f'logger={name} needs the package {name}; pip install "miniformer[{name}]", '
                "or use tensorboard, csv or none"
            )
