"""Resuming a run: its config and its latest checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.config import ConfigError, UserError
from miniformer.config.command_line import resolve_model
from miniformer.data.reading.records import Records
from miniformer.model.config_file import check_required_packages
from miniformer.train_config import TrainConfig
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata

CONFIG_FILE = "train_config.json"
AUTO = "auto"  # of `TrainConfig.resume`
# Fields that a resumed run may change. "auto": with resume=auto, too; the others would then make
# another run.
CHANGEABLE_FIELDS = {
    **dict.fromkeys(("train_path", "val_path", "test_path"), "named"),
    **dict.fromkeys(("lr", "scheduler", "scheduler_config", "warmup_steps"), "named"),
    **dict.fromkeys(("warmup_ratio", "weight_decay", "layer_lr_decay"), "named"),
    **dict.fromkeys(("optimizer_config", "gradient_clip_val", "accumulate_grad_batches"), "named"),
    **dict.fromkeys(("val_check_interval", "checkpoint_metric", "precision"), "named"),
    **dict.fromkeys(("early_stopping_patience", "sample_prompt"), "named"),
    **dict.fromkeys(("max_epochs", "max_steps", "max_time", "checkpoint_interval"), "auto"),
    **dict.fromkeys(("accelerator", "devices", "num_nodes", "strategy", "threads"), "auto"),
    **dict.fromkeys(("compile", "activation_checkpointing", "deterministic"), "auto"),
    **dict.fromkeys(("num_workers", "logger", "callbacks"), "auto"),
}


def resume_config(run_dir: Path, overrides: dict[str, Any]) -> TrainConfig:
    """The config of a resumed run.

    Args:
        run_dir: the run's folder.
        overrides: changed fields, such as a larger max_steps; `resume` is ignored.

    Raises:
        UserError: the folder is not a run folder, or a fixed field is changed.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        problem = f"it has no {CONFIG_FILE}" if run_dir.exists() else "there is no such folder"
        hint = _suggest_run_folder(run_dir)
        raise UserError(f"resume: {run_dir} is not a run folder: {problem}{hint}")
    saved = saved_config(run_dir)
    if saved.val_share and overrides.get("val_path") is not None:
        raise UserError(
            f"resume: {run_dir} validates on a part of its training data (val_share="
            f"{saved.val_share}), which would now be trained on; leave val_path out"
        )
    overrides, _ = TrainConfig.current_names({**overrides, "resume": str(run_dir)}, warn=False)
    fixed = [
        f"{name} is {getattr(saved, name)!r} in {run_dir}, not {value!r}; leave it out, "
        "or start a new run"
        for name, value in overrides.items()
        if name not in (*CHANGEABLE_FIELDS, "resume") and value != getattr(saved, name)
    ]
    if fixed:
        raise UserError("resume: " + "; ".join(fixed))
    if overrides.get("devices", saved.devices) * overrides.get("num_nodes", saved.num_nodes) == 1:
        overrides = {"strategy": None, **overrides}
    return dataclasses.replace(saved, **overrides)


def saved_config(run_dir: Path) -> TrainConfig:
    """The config that a run has stored; one of an earlier version keeps the defaults of then.

    Raises:
        UserError: the file is invalid, or a package of the run is not installed.
    """
    path = run_dir / CONFIG_FILE
    for folder in (run_dir / "best", run_dir / "last"):  # before their parts are unknown
        check_required_packages(folder)
    saved = TrainConfig.from_file(path)
    if "wide_head" not in json.loads(path.read_text(encoding="utf-8")):
        changes: dict[str, Any] = {"wide_head": "off"}
        if saved.val_path is not None:
            metric = registry.get("task", saved.task).metrics[0]
            changes["checkpoint_metric"] = saved.checkpoint_metric or metric
            changes["early_stopping_patience"] = saved.early_stopping_patience or 0
        saved = dataclasses.replace(saved, **changes)
    if saved.folds is None and saved.val_share is None:  # of a stream, with val_path, or earlier
        saved = dataclasses.replace(saved, val_share=None if saved.val_path else 0.0)
    return saved


def _suggest_run_folder(path: Path) -> str:
    """Hint with the run folder nearest to a wrong path; empty: there is none."""
    candidates = [path.parent] if path.exists() else []
    siblings = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    names = difflib.get_close_matches(path.name, [sibling.name for sibling in siblings], n=3)
    candidates += [path.parent / name for name in names]
    candidates += sorted(path.iterdir()) if path.is_dir() else []
    nearest = next((folder for folder in candidates if (folder / CONFIG_FILE).is_file()), None)
    return "" if nearest is None else f"; did you mean {nearest}?"


def complete_config(config: TrainConfig) -> TrainConfig:
    """The config with all fields of the run that it resumes, and a model directory to start from.

    Raises:
        ConfigError: the config of a new run has settings that the run itself would override.
    """
    if config.resume not in (None, AUTO) and not config.train_path:  # otherwise it is complete
        return resume_config(Path(config.resume), config.given_fields())
    if config.resume is None and (problems := config.overridden_settings()):
        raise ConfigError("TrainConfig", problems)
    if config.init_from is not None:  # the folder of a run stands for its best model
        start = {"init_from": resolve_model(config.init_from)}
        config = TrainConfig.from_dict({**config.given_fields(), **start})
    return config


def resolve_resume(config: TrainConfig, earlier: Path | None) -> tuple[TrainConfig, Path | None]:
    """The config of a run and the checkpoint to resume from.

    The checkpoint is None for a new run, and for a run that is still in pretraining.

    Args:
        config: the run.
        earlier: run folder of an earlier attempt of these processes, which torchrun restarted.

    Raises:
        UserError: the run folder has no checkpoint.
    """
    if config.resume is None and earlier is not None:
        config = resume_config(earlier, {})
    if config.resume is None:
        return config, None
    checkpoint = latest_checkpoint(Path(config.resume))
    if checkpoint is None and config.pretrain is None:
        raise UserError(
            f"resume: {config.resume} has no checkpoint (checkpoints/step-...); start a new run"
        )
    return config, checkpoint


def dataset_fingerprint(records: Records | None) -> dict[str, Any]:
    """Number of records and bytes of the training data, to detect changes; None: a stream."""
    mixture = None if records is None else records.mixture
    weights = {} if mixture is None else {"mixture": mixture.fingerprint()}
    return (
        weights
        if records is None
        else {"records": len(records), "bytes": int(records.n_bytes), **weights}
    )


def check_same_data(records: Records | None, checkpoint: Path) -> None:
    """Checks that the training data is that of the checkpoint.

    Raises:
        UserError: it has changed.
    """
    saved, current = read_checkpoint_metadata(checkpoint).get("facts"), dataset_fingerprint(records)
    if saved != current:
        raise UserError(
            f"resume: the data of {checkpoint.parent.parent} has changed: it had "
            f"{_describe(saved)}, and has {_describe(current)}; start a new run: leave out resume, "
            "or set another experiment_name"
        )


def _describe(fingerprint: dict[str, Any] | None) -> str:
    """The values of a `dataset_fingerprint`, such as 120 records, 10,997 bytes."""
    values = {**(fingerprint or {})}
    mixture = [values.pop("mixture")] if "mixture" in values else []
    return ", ".join([*(f"{x:,} {name}" for name, x in values.items()), *mixture]) or "none"
