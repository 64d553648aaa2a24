"""Masked-LM pretraining on the texts of a task, before training on the task (`pretrain`).

Pretraining is a separate run (`task=masked_lm`) in the subfolder `pretrain` of the run folder,
and can be interrupted and resumed. The run then starts from its weights, except for the head.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.config.size_presets import SHAPE_FIELDS
from miniformer.train_config import TrainConfig
from miniformer.training.resume.config import saved_config
from miniformer.training.resume.storage import latest_checkpoint
from miniformer.training.setup.prepare import build_task
from miniformer.training.setup.run_setup import RunSetup

PRETRAIN_FOLDER = "pretrain"
_LEGACY_PRETRAIN_FOLDER = "warm_start"  # of version 0.1
# Settings of both runs: data, batches, hardware.
_SHARED_FIELDS = (
    "train_path", "val_path", "val_share", "batch_size", "batch_tokens", "seq_len",
    "activation_checkpointing", "precision", "compile", "accelerator", "devices", "num_nodes",
    "strategy", "num_workers", "seed", "deterministic", "logger", "input_field",
    "input_separator", "columns", "delimiter", "quoting", "encoding",
)  # fmt: skip
# Fields of the task's model that a masked LM does not have.
_HEAD_FIELDS = ("output_dim", "output_bias", "ordered_outputs")
# Settings that follow from the run. Of the model, only the dropout may differ.
_DERIVED_FIELDS = (
    "task", "model", "model_size", "init_from", "pretrain", "tokenizer", "source_tokenizer",
    "work_dir", "experiment_name", "resume",
)  # fmt: skip
_DROPOUT_FIELDS = ("dropout", "token_dropout")


def pretrain_config(run: RunSetup) -> TrainConfig:
    """Config of the pretraining run, without its folder and tokenizer.

    Args:
        run: the run that pretraining precedes.

    Raises:
        UserError: the task does not read one text, or `pretrain` has an invalid setting.
    """
    config, task = run.config, run.task
    kind = getattr(task, "input_kind", None)
    if kind not in ("text", "pair"):
        actual = "vectors" if kind == "features" else f"task={config.task}"
        raise UserError(
            f"pretrain is for classification and regression of texts, not for {actual}; "
            "leave it out"
        )
    overrides = _check_overrides(config.pretrain or {})
    defaults = {field.name: field.default for field in dataclasses.fields(type(run.model_config))}
    shape = {
        name: value
        for name, value in run.model_config.to_dict().items()
        if (value != defaults[name] or name in SHAPE_FIELDS) and name not in _HEAD_FIELDS
    }
    settings = {
        **{name: getattr(config, name) for name in _SHARED_FIELDS},
        **overrides,
        "task": "masked_lm",
        "task_config": {
            "field": "input",
            "shared_token_types": task.shared_token_types,  # type: ignore[attr-defined]
            **overrides["task_config"],
        },
        "model_config": {**shape, **overrides["model_config"]},
        "experiment_name": PRETRAIN_FOLDER,
    }
    try:
        pretraining = TrainConfig.from_dict(settings)
        build_task(pretraining, "encoder")
    except UserError as error:
        raise UserError(f"pretrain: {error}") from None
    return pretraining


def _check_overrides(pretrain: dict[str, Any]) -> dict[str, Any]:
    """Returns the checked settings, with a `task_config` and a `model_config`."""
    derived = [name for name in _DERIVED_FIELDS if name in pretrain]
    if derived:
        raise UserError(f"pretrain: {derived[0]} follows from the run; leave it out")
    overrides = {"task_config": {}, "model_config": {}, **pretrain}
    for name in ("task_config", "model_config"):
        if not isinstance(overrides[name], dict):
            raise UserError(f"pretrain: {name} must be an object, not {overrides[name]!r}")
    refused = [name for name in overrides["model_config"] if name not in _DROPOUT_FIELDS]
    if refused:
        raise UserError(
            f"pretrain: model_config may set {' and '.join(_DROPOUT_FIELDS)}, not {refused[0]}; "
            "the other fields are those of the run"
        )
    return overrides


def resume_pretraining(config: TrainConfig, parent_folder: Path) -> tuple[TrainConfig, Path | None]:
    """Returns the config and the checkpoint that pretraining continues from; None: from scratch.

    Args:
        config: config of a new pretraining run.
        parent_folder: folder of the run that pretraining is part of, with the tokenizer.
    """
    folder = parent_folder / PRETRAIN_FOLDER
    if not folder.exists() and (parent_folder / _LEGACY_PRETRAIN_FOLDER).exists():
        folder = parent_folder / _LEGACY_PRETRAIN_FOLDER
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None:
        saved = saved_config(folder)
        return dataclasses.replace(saved, resume=str(folder)), checkpoint
    shutil.rmtree(folder, ignore_errors=True)  # killed before the first checkpoint
    parent = str(parent_folder)
    return dataclasses.replace(config, work_dir=parent, tokenizer=parent), None
