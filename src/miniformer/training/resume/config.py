"""A run that goes on: its folder, its settings, its state."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from miniformer.config import ConfigError, UserError
from miniformer.config.train_checks import overridden_setting_problems
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig
from miniformer.training.resume.storage import latest_checkpoint

CONFIG_FILE = "train_config.json"
# What weights, optimiser states and places in the data are of.
_FIXED_FIELDS = (
    "task", "task_config", "model", "model_config", "size", "init_from", "warm_start", "tokenizer",
    "source_tokenizer", "batch_size", "batch_tokens", "seq_len", "optimizer", "streaming", "seed",
    "ema_decay", "average_checkpoints", "memory", "find_batch_size", "find_lr", "work_dir",
    "experiment_name",
)  # fmt: skip


def resume_config(run_dir: Path, overrides: dict[str, Any]) -> TrainConfig:
    """The settings of a run that goes on.

    Args:
        run: its folder.
        changes: of its settings, such as a larger max_steps.

    Raises:
        UserError: the folder is no run's, or it would become another run.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        parent = run_dir.absolute().parent
        hint = f"; did you mean {run_dir.parent}?" if (parent / CONFIG_FILE).is_file() else ""
        raise UserError(f"resume: {run_dir} is no run's folder: it has no {CONFIG_FILE}{hint}")
    saved = TrainConfig.from_file(run_dir / CONFIG_FILE)
    fixed = [
        f"{name} is {getattr(saved, name)!r} in {run_dir}, not {value!r}; leave it out, "
        "or begin a new run"
        for name, value in overrides.items()
        if name in _FIXED_FIELDS and value != getattr(saved, name)
    ]
    if fixed:
        raise UserError("resume: " + "; ".join(fixed))
    if overrides.get("devices", saved.devices) * overrides.get("num_nodes", saved.num_nodes) == 1:
        overrides = {"strategy": None, **overrides}
    return dataclasses.replace(saved, **overrides, resume=str(run_dir))


def resolve_resume(config: TrainConfig) -> tuple[TrainConfig, Path | None]:
    """A run's settings, and the state that it begins with.

    None: it begins anew, or its warm start has not come to its end.

    Raises:
        UserError: `resume` names no run, or one without a state.
    """
    if config.resume is None:
        if problems := overridden_setting_problems(config):
            raise ConfigError("TrainConfig", problems)
        return config, None
    run = Path(config.resume)
    if not config.train_path:  # else they are whole already
        changes = config.non_default_fields()
        changes.pop("resume")
        config = resume_config(run, changes)
    state = latest_checkpoint(run)
    if state is None and config.warm_start is None:
        raise UserError(
            f"resume: {run} has no state to go on from (checkpoints/step-...); begin a new run"
        )
    return config, state


def dataset_fingerprint(data: MiniFormerDataModule) -> dict[str, int]:
    """What tells whether training data is still the same, at no cost."""
    records = getattr(data.chunks["train"], "records", None)
    return {} if records is None else {"records": len(records), "bytes": int(records.n_bytes)}
