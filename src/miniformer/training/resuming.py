"""A run that goes on: its folder, its settings, its state."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from miniformer.config import ConfigError, UserError
from miniformer.config.train_checks import replaced_settings
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig
from miniformer.training.checkpoints import latest

SETTINGS = "train_config.json"
# What weights, optimiser states and places in the data are of.
_FIXED = (
    "task", "task_config", "model", "model_config", "size", "init_from", "warm_start", "tokenizer",
    "source_tokenizer", "batch_size", "batch_tokens", "seq_len", "optimizer", "streaming", "seed",
    "ema_decay", "average_checkpoints", "memory", "find_batch_size", "find_lr", "work_dir",
    "experiment_name",
)  # fmt: skip


def going_on(run: Path, changes: dict[str, Any]) -> TrainConfig:
    """The settings of a run that goes on.

    Args:
        run: its folder.
        changes: of its settings, such as a larger max_steps.

    Raises:
        UserError: the folder is no run's, or it would become another run.
    """
    if not (run / SETTINGS).is_file():
        parent = run.absolute().parent
        hint = f"; did you mean {run.parent}?" if (parent / SETTINGS).is_file() else ""
        raise UserError(f"resume: {run} is no run's folder: it has no {SETTINGS}{hint}")
    saved = TrainConfig.from_file(run / SETTINGS)
    fixed = [
        f"{name} is {getattr(saved, name)!r} in {run}, not {value!r}; leave it out, "
        "or begin a new run"
        for name, value in changes.items()
        if name in _FIXED and value != getattr(saved, name)
    ]
    if fixed:
        raise UserError("resume: " + "; ".join(fixed))
    if changes.get("devices", saved.devices) * changes.get("num_nodes", saved.num_nodes) == 1:
        changes = {"strategy": None, **changes}
    return dataclasses.replace(saved, **changes, resume=str(run))


def settings_of(config: TrainConfig) -> tuple[TrainConfig, Path | None]:
    """A run's settings, and the state that it begins with.

    None: it begins anew, or its warm start has not come to its end.

    Raises:
        UserError: `resume` names no run, or one without a state.
    """
    if config.resume is None:
        if problems := replaced_settings(config):
            raise ConfigError("TrainConfig", problems)
        return config, None
    run = Path(config.resume)
    if not config.train_path:  # else they are whole already
        changes = config.changed()
        changes.pop("resume")
        config = going_on(run, changes)
    state = latest(run)
    if state is None and config.warm_start is None:
        raise UserError(
            f"resume: {run} has no state to go on from (checkpoints/step-...); begin a new run"
        )
    return config, state


def facts_of(data: MiniFormerDataModule) -> dict[str, int]:
    """What tells whether training data is still the same, at no cost."""
    records = getattr(data.pools["train"], "records", None)
    return {} if records is None else {"records": len(records), "bytes": int(records.n_bytes)}
