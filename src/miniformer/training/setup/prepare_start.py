"""Prepares a run in memory that starts from a loaded model, its tokenizer and its task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.records import as_records
from miniformer.data.rules import fit_task
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.train_config import TrainConfig
from miniformer.training.setup.limits import count_epochs
from miniformer.training.setup.prepare import (
    data_sources,
    make_data,
    mixture_settings,
    read_training_records,
    resolve_data_batch_size,
)
from miniformer.training.setup.resolve import resolve_config
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.tuning.data_defaults import resolve_lr
from miniformer.training.tuning.validation_defaults import (
    hold_out_validation,
    resolve_metric,
    resolve_validation,
)
from miniformer.utils.streams import progress_bars


def prepare_start(
    config: TrainConfig, console: Console, start: Pipeline, in_memory: Mapping[str, Any]
) -> RunSetup:
    """Reads the data for a model that exists; `prepare` builds a new one.

    Args:
        config: the run, without settings of the model.
        console: output for progress messages.
        start: the model to train, its tokenizer and its task.
        in_memory: records in memory by the name of the path that they replace.

    Raises:
        UserError: a setting, a path or a record is invalid for the task.
    """
    sources, model_config = data_sources(config, in_memory), start.model.config
    kind = "seq2seq" if isinstance(start.model, Seq2SeqTransformer) else "encoder"
    given = config.given_fields()
    settings = resolve_config(dataclasses.replace(config, task=start.task.name, model=kind))
    settings.given = given
    if config.lr is None and not config.find_lr:
        settings.apply([resolve_lr(config.optimizer, from_scratch=False)])
    mapping, stored = FieldMapping.from_settings(config), start.data_settings
    seq_len = config.seq_len or stored.seq_len or model_config.max_seq_len
    if seq_len > model_config.max_seq_len:
        raise UserError(
            f"seq_len={seq_len} is longer than the model's max_seq_len="
            f"{model_config.max_seq_len}; lower seq_len"
        )
    with progress_bars(console) as progress:
        schema = start.task.schema
        mapping.check_fields(schema)
        records = read_training_records(sources["train_path"], schema, mapping, progress)
        records, held_out, share = hold_out_validation(settings, records, None)
        settings.apply(share)
        settings.resolved += mixture_settings(records)
        task = fit_task(start.task, records)
        source = held_out if sources["val_path"] is None else sources["val_path"]
        val = None
        if source is not None:
            val = as_records(source, schema, mapping=records.mapping, progress=progress)
        metric = task.metrics[0] if val is None else resolve_metric(settings, task, records)
        data = make_data(
            config, records, task, start.tokenizer,
            val_path=val, mapping=records.mapping, seq_len=seq_len, progress=progress,
        )  # fmt: skip
    resolve_data_batch_size(settings, data)
    epochs = count_epochs(settings.config, data)
    num_validations, resolved = resolve_validation(settings.config, data, epochs)
    settings.resolved += resolved
    return RunSetup(
        **vars(settings),
        task=task,
        metric=metric,
        num_validations=num_validations,
        data=data,
        model=start.model,
        model_config=model_config,
        tokenizer=start.tokenizer,
        tokenizer_summary=None,
        seq_len=seq_len,
        pretrained_path=None,
    )
