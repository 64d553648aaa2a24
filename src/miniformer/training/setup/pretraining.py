"""A warm start: a model first learns to guess hidden tokens of its own texts, then its task.

It is a run of its own (`task=masked_lm`) in the folder `pretrain` within the run's, and can be
left and taken up again as any other; the run then begins with its weights, all but the head.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.config.size_presets import SHAPE_FIELDS
from miniformer.train_config import TrainConfig
from miniformer.training.resume.storage import latest_checkpoint
from miniformer.training.setup.prepare import RunSetup, build_task

PRETRAIN_FOLDER = "pretrain"
_FORMER_FOLDER = "warm_start"  # of runs by version 0.1
# What both have in common: the data, how it is laid out, and the machine.
_SHARED_FIELDS = (
    "train_path", "val_path", "batch_size", "batch_tokens", "seq_len", "activation_checkpointing",
    "precision", "compile", "accelerator", "devices", "num_nodes", "strategy", "num_workers",
    "seed", "deterministic", "logger",
)  # fmt: skip
# What the task's model has, and one that guesses tokens has not.
_HEAD_FIELDS = ("output_dim", "output_bias")
# What follows from the run; the model, too, is its own, and only learns with another dropout.
_DERIVED_FIELDS = (
    "task", "model", "model_size", "init_from", "pretrain", "tokenizer", "source_tokenizer", "work_dir",
    "experiment_name", "resume",
)  # fmt: skip
_DROPOUT_FIELDS = ("dropout", "token_dropout")


def pretrain_config(run: RunSetup) -> TrainConfig:
    """The settings of the run that comes first, all but its folder and tokenizer.

    Args:
        run: what comes after it.

    Raises:
        UserError: the run's task reads no text as a whole, or `pretrain` holds a bad setting.
    """
    config, task = run.config, run.task
    kind = getattr(task, "input_kind", None)
    if kind not in ("text", "pair"):
        found = "vectors" if kind == "features" else f"task={config.task}"
        raise UserError(
            f"pretrain is for classification and regression of texts, not for {found}; leave it out"
        )
    given = _check_overrides(config.pretrain or {})
    defaults = {field.name: field.default for field in dataclasses.fields(type(run.model_config))}
    shape = {
        name: value
        for name, value in run.model_config.to_dict().items()
        if (value != defaults[name] or name in SHAPE_FIELDS) and name not in _HEAD_FIELDS
    }
    settings = {
        **{name: getattr(config, name) for name in _SHARED_FIELDS},
        **given,
        "task": "masked_lm",
        "task_config": {
            "field": "input",
            "shared_token_types": task.should_mark_shared(),  # type: ignore[attr-defined]
            **given["task_config"],
        },
        "model_config": {**shape, **given["model_config"]},
        "experiment_name": PRETRAIN_FOLDER,
    }
    try:
        warm = TrainConfig.from_dict(settings)
        build_task(warm, "encoder")
    except UserError as error:
        raise UserError(f"pretrain: {error}") from None
    return warm


def _check_overrides(pretrain: dict[str, Any]) -> dict[str, Any]:
    """What is said of a warm start, with a `task_config` and a `model_config`."""
    settled = [name for name in _DERIVED_FIELDS if name in pretrain]
    if settled:
        raise UserError(f"pretrain: {settled[0]} follows from the run; leave it out")
    given = {"task_config": {}, "model_config": {}, **pretrain}
    for name in ("task_config", "model_config"):
        if not isinstance(given[name], dict):
            raise UserError(f"pretrain: {name} must be an object, not {given[name]!r}")
    others = [name for name in given["model_config"] if name not in _DROPOUT_FIELDS]
    if others:
        raise UserError(
            f"pretrain: model_config may hold {' and '.join(_DROPOUT_FIELDS)}, not {others[0]}; "
            "the rest of the model is that of the run"
        )
    return given


def resume_pretraining(config: TrainConfig, parent_folder: Path) -> tuple[TrainConfig, Path | None]:
    """A warm start as it has to go on, and its state; None: from its beginning.

    Args:
        config: its settings.
        whole: the folder of the run that it is a part of, where its tokenizer is.
    """
    folder = parent_folder / PRETRAIN_FOLDER
    if not folder.exists() and (parent_folder / _FORMER_FOLDER).exists():
        folder = parent_folder / _FORMER_FOLDER
    state = latest_checkpoint(folder)
    if state is not None:
        saved = TrainConfig.from_file(folder / "train_config.json")
        return dataclasses.replace(saved, resume=str(folder)), state
    shutil.rmtree(folder, ignore_errors=True)  # killed before there was anything to keep
    return dataclasses.replace(
        config, work_dir=str(parent_folder), tokenizer=str(parent_folder)
    ), None
