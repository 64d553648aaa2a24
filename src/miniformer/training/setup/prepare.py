"""Prepares a run: settings, task, tokenizer, data, model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from miniformer import registry
from miniformer.checkpoint.artifacts import MODEL_CLASSES
from miniformer.config import ConfigError, NoEffectWarning, TransformerConfig, UserError
from miniformer.config.resolved import ResolvedSetting, given_task_options
from miniformer.config.size_presets import SIZE_PRESETS
from miniformer.config.train_settings import IN_MEMORY
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.folds import fit_classes
from miniformer.data.reading.files import ProgressCallback
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.mixture import as_mixture
from miniformer.data.reading.records import Records, as_records
from miniformer.data.reading.schema import Schema
from miniformer.data.rules import fit_task, share_files
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import Task
from miniformer.train_config import TrainConfig
from miniformer.training.resume.config import check_same_data
from miniformer.training.setup.init_from import (
    check_new_weights,
    load_pretrained_weights,
    transform_model,
)
from miniformer.training.setup.limits import count_epochs
from miniformer.training.setup.resolve import Resolution, resolve_config
from miniformer.training.setup.run_setup import RunSetup, load_run_task
from miniformer.training.setup.tokenizers import run_tokenizer
from miniformer.training.tuning.data_defaults import (
    DEFAULT_BATCH_SIZE,
    resolve_batch_size,
    resolve_model_size,
    resolve_task_options,
)
from miniformer.training.tuning.input_length import fit_input_length
from miniformer.training.tuning.validation_defaults import (
    check_metric,
    hold_out_validation,
    resolve_metric,
    resolve_validation,
)
from miniformer.utils.streams import progress_bars


def prepare(
    config: TrainConfig,
    console: Console,
    checkpoint: Path | None = None,
    in_memory: Mapping[str, Any] | None = None,
) -> RunSetup:
    """Reads the data and builds the model; writes nothing.

    Args:
        config: the run; one that resumes has the tokenizer and the task of its folder.
        console: output for progress messages.
        checkpoint: the checkpoint to resume from.
        in_memory: records in memory by the name of the path that they replace.

    Raises:
        UserError: a setting, a path or a record is invalid, or the data of the checkpoint has
            changed.
    """
    sources = data_sources(config, in_memory or {})
    settings = resolve_config(config)
    resume_dir = None if config.resume is None else Path(config.resume)
    stored_task = None if resume_dir is None else load_run_task(resume_dir, settings.kind)
    task = stored_task or build_task(settings.config, settings.kind)
    check_metric(settings, task)
    seq_len = _resolve_seq_len(settings)
    records, held_out, mapping = None, None, FieldMapping.from_settings(config)
    with progress_bars(console) as progress:
        if not config.streaming:
            mapping.check_fields(task.schema)
            source = sources["train_path"]
            records = read_training_records(source, task.schema, mapping, progress)
            mapping = records.mapping
            if config.folds is not None:
                task = fit_classes(task, records)
            records, held_out, share = hold_out_validation(settings, records, checkpoint)
            settings.apply(share)
            task = fit_task(task, records)
            settings.resolved += mixture_settings(records)
        elif config.val_path is None and config.val_share is None:
            reason = "a part of a stream cannot be set aside; name a val_path"
            settings.apply([ResolvedSetting("val_share", 0.0, reason)])
        if stored_task is None:
            task, options = resolve_task_options(task, settings.config.task_config, records)
            settings.apply(options)
            settings.resolved += task.setting_notes()
        validates = config.val_path is not None or held_out is not None
        metric = resolve_metric(settings, task, records) if validates else task.metrics[0]
        notes = list(task.pre_run_warnings(metric)) if validates or config.test_path else []
        if config.sample_prompt is not None and not (task.reads_text() and _generates_text(task)):
            raise UserError(
                f"sample_prompt has no effect: task={config.task} generates no text; leave it out"
            )
        val = held_out if sources["val_path"] is None else sources["val_path"]
        eval_records = {
            name: None
            if source is None
            else as_records(source, task.schema, mapping=mapping, progress=progress)
            for name, source in (("val_path", val), ("test_path", sources["test_path"]))
        }
        tokenizer, summary = run_tokenizer(settings, task, records, resume_dir)
        if summary is not None:
            console.print(f"tokenizer: {summary}")
        if stored_task is None and tokenizer is not None and records is not None:
            task = _resolve_augmentation(settings, task, tokenizer, records)
        fields = {**SIZE_PRESETS.get(config.model_size or "", {}), **settings.config.model_config}
        model_config = TransformerConfig.from_dict(task.model_config(fields, tokenizer))
        task.check(model_config, tokenizer)
        if model_config.input is not None:
            task = fit_input_length(task, model_config, seq_len)
        data = make_data(
            config, records, task, tokenizer,
            mapping=mapping, seq_len=seq_len, progress=progress, **eval_records,
        )  # fmt: skip
    if checkpoint is not None:
        check_same_data(records, checkpoint)
    resolve_data_batch_size(settings, data)
    model_size = resolve_model_size(settings.config, data)
    if model_size is not None:
        settings.resolved.append(model_size)
        fields |= SIZE_PRESETS[model_size.value]
        model_config = dataclasses.replace(model_config, **SIZE_PRESETS[model_size.value])
    settings.apply([], model_config=fields)
    epochs = count_epochs(settings.config, data)
    num_validations, resolved = resolve_validation(settings.config, data, epochs)
    settings.resolved += resolved

    lines = [*_data_summary(data, config), *notes, *task.data_warnings()]
    if records is not None:
        lines += task.record_warnings(records)
    sample = eval_records["val_path"] or records
    if tokenizer is not None and sample is not None:
        lines += task.tokenizer_warnings(tokenizer, sample)
    for line in lines:
        console.print(line)
    wide_head = None
    if checkpoint is None and (task.supports_wide_head or config.wide_head == "on"):
        from miniformer.training.tuning.wide_head.fit import fit_wide_head

        wide_head = fit_wide_head(settings.config, model_config, data, console)
    if wide_head is not None:
        # A resumed run has the same features.
        settings.apply([wide_head.setting], model_config={**fields, "wide_head": wide_head.groups})
        model_config = dataclasses.replace(model_config, wide_head=wide_head.groups)
    model: Any = MODEL_CLASSES[settings.kind](model_config)
    new: list[str] = []
    pretrained_path = None if config.init_from is None else Path(config.init_from)
    if pretrained_path is not None and resume_dir is None:
        model, new = _load_weights(model, pretrained_path, settings.kind, console)
    if transforms := settings.config.all_transforms():
        model = transform_model(model, transforms, console)
    if config.adapter is not None:
        check_new_weights(model, new)
    if wide_head is not None:
        model.wide_head.load_state_dict(wide_head.state)
    num_params = model_config.num_params(seq2seq=settings.kind == "seq2seq")
    console.print(f"model: {num_params:,} parameters")
    return RunSetup(
        **vars(settings),
        task=task,
        metric=metric,
        num_validations=num_validations,
        data=data,
        model=model,
        model_config=model_config,
        tokenizer=tokenizer,
        tokenizer_summary=summary,
        seq_len=seq_len,
        pretrained_path=pretrained_path,
    )


def _load_weights(model: Any, path: Path, kind: str, console: Console) -> tuple[Any, list[str]]:
    """The model with the weights of `init_from`, the names of others, and a line about them."""
    model, new = load_pretrained_weights(model, path, kind)
    suffix = f"; newly initialized: {', '.join(new)}" if new else ""
    console.print(f"weights: from {path}{suffix}")
    return model, new


def data_sources(config: TrainConfig, in_memory: Mapping[str, Any]) -> dict[str, Any]:
    """Training, validation and test data: paths, or records in memory."""
    names = {"train_path": "first argument", "val_path": "val", "test_path": "test"}
    sources = {name: in_memory.get(name, getattr(config, name)) for name in names}
    for name, argument in names.items():
        if isinstance(sources[name], str) and sources[name] == IN_MEMORY:
            raise UserError(
                f"{name}: the run had records in memory; pass the same records to miniformer.train "
                f"again, as its {argument}, together with resume"
            )
    return sources


def read_training_records(
    source: Any, schema: Schema, mapping: FieldMapping, progress: ProgressCallback
) -> Records:
    """Training data of files or in memory, or of sources that have weights."""
    source = as_mixture(source) if isinstance(source, list) else source
    return as_records(source, schema, mapping=mapping, progress=progress)


def mixture_settings(records: Records) -> list[ResolvedSetting]:
    """The shares of the sources of training data, if they have weights."""
    return [] if records.mixture is None else [records.mixture.setting()]


def make_data(
    config: TrainConfig,
    records: Records | None,
    task: Task,
    tokenizer: Tokenizer | None,
    **options: Any,
) -> MiniFormerDataModule:
    """The datamodule of a run, set up.

    Args:
        config: the run.
        records: the training data; None: it is a stream.
        task, tokenizer: those of the run.
        **options: arguments of `MiniFormerDataModule` that are not fields of the config.
    """
    data = MiniFormerDataModule(
        records or config.train_path,
        task=task,
        tokenizer=tokenizer,
        batch_size=config.batch_size or DEFAULT_BATCH_SIZE,
        batch_tokens=config.batch_tokens,
        num_workers=config.num_workers,
        streaming=config.streaming,
        seed=config.seed,
        batch_order=config.batch_order,
        **options,
    )
    data.setup()
    return data


def build_task(config: TrainConfig, kind: str) -> Task:
    """Builds the task for a kind of model."""
    try:
        options = given_task_options(config.task_config)
        task: Task = registry.get("task", config.task).from_dict(options)
    except ConfigError as error:
        raise UserError(f"task_config: {error}") from None
    return task.for_model(kind)


def _generates_text(task: Task) -> bool:
    return type(task).generate_text is not Task.generate_text


def _resolve_seq_len(settings: Resolution) -> int:
    """Tokens per window; checks the fields of the model before the data is read."""
    config = settings.config
    fields = {**SIZE_PRESETS.get(config.model_size or "", {}), **config.model_config}
    fields.pop("wide_head", None)  # needs fields that follow from the task
    max_seq_len = TransformerConfig.from_dict(fields).max_seq_len
    if config.seq_len is None:
        reason = "max_seq_len of the model"
        settings.resolved.append(ResolvedSetting("seq_len", max_seq_len, reason))
    seq_len = config.seq_len or max_seq_len
    if seq_len > max_seq_len:
        raise UserError(
            f"seq_len={seq_len} is longer than the model's max_seq_len={max_seq_len}; "
            f"lower seq_len or set max_seq_len={seq_len} in model_config"
        )
    return seq_len


def _resolve_augmentation(
    settings: Resolution, task: Task, tokenizer: Tokenizer, records: Records
) -> Task:
    """The task with the changes of examples that follow from the data and its tokens."""
    if task.text_fields is None or "copy_noise" in settings.config.task_config:
        return task
    from miniformer.training.tuning.copy_noise import resolve_copy_noise

    task, options = resolve_copy_noise(task, tokenizer, records)
    settings.apply(options)
    return task


def resolve_data_batch_size(settings: Resolution, data: MiniFormerDataModule) -> None:
    """Batch size that follows from the data, unless given; also that of the datamodule."""
    config = settings.config
    if config.batch_size is not None:
        return
    options = resolve_batch_size(data, config.batch_tokens, config.world_size)
    if not options and config.batch_tokens is None:
        options = [ResolvedSetting("batch_size", DEFAULT_BATCH_SIZE, "default")]
    settings.apply([], batch_size=DEFAULT_BATCH_SIZE)
    settings.apply(options)
    data.batch_size = settings.config.batch_size or 0
    data.batch_tokens = settings.config.batch_tokens


def _data_summary(data: MiniFormerDataModule, config: TrainConfig) -> Iterator[str]:
    """Yields lines about the data: record and token counts, truncation."""
    for split, label in (("train", "training"), ("val", "validation"), ("test", "test")):
        chunks = data.chunks.get(split)
        if chunks is None:
            continue
        tokens = data.num_tokens(split)  # None: not all are in memory
        records = getattr(chunks, "records", None)
        count = "a stream" if records is None else f"{len(records):,} records"
        if split == "val" and config.val_path is None:
            count += " set aside from train_path (--val_share 0: none)"
        elif split != "train" and share_files(
            records, getattr(data.chunks["train"], "records", None)
        ):
            count += " that are training data, too: the metrics say nothing about other records"
        yield f"{label} data: {count}" + (f", {tokens:,} tokens" if tokens else "")
        if warning := data.truncation_warning(split):
            yield warning
        if getattr(data.task, "packing", "wrapped") != "wrapped":
            yield from data.packing_summary(split)
    if data.num_workers and getattr(data.chunks["train"], "in_memory", None) is not None:
        warnings.warn(
            f"num_workers={data.num_workers} has no effect: the training data is in memory",
            NoEffectWarning,
            stacklevel=2,
        )
    if data.val_path is None:
        yield "no validation: only the training loss is reported"
