"""`resume=auto`: the newest unfinished run with the same settings is resumed, or a new one starts.

Unfinished runs with other settings are passed over.

A run folder has the settings that were given (`given_settings.json`), and, once the run is complete
and evaluated, its result (`result.json`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.distributed.launcher import rank0_console
from miniformer.training.resume.config import (
    CHANGEABLE_FIELDS,
    CONFIG_FILE,
    complete_config,
    resume_config,
)
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.setup.pretraining import PRETRAIN_FOLDER
from miniformer.utils.atomic import write_json
from miniformer.utils.jsonl import read_json

GIVEN_FILE, RESULT_FILE = "given_settings.json", "result.json"
_PLACE_FIELDS = ("resume", "work_dir", "experiment_name")


def resume_auto(config: TrainConfig, earlier: Path | None, console: Console) -> TrainConfig:
    """The config of the run that `resume=auto` resumes, or of a new one.

    Args:
        config: a run with all settings and `resume="auto"`.
        earlier: the folder of these processes before torchrun restarted them; None: a first start.
        console: output of rank 0.
    """
    if earlier is not None:
        return dataclasses.replace(config, resume=None)
    return resolve_auto_resume(config, rank0_console(console).print)


def resolve_auto_resume(config: TrainConfig, log_fn: Callable[[str], Any]) -> TrainConfig:
    """The config of the run to resume with its changes, or of a new run.

    Args:
        config: a run with all settings and `resume="auto"`.
        log_fn: prints which run is resumed, or why none is.

    Raises:
        ConfigError: a new run has settings that the run itself would override.
    """
    name = config.experiment_name or config.task
    given = config.given_fields()
    reason = None
    for folder in _unfinished_runs(Path(config.work_dir), name):
        fixed, changed = _differences(_read_json(folder / GIVEN_FILE), given)
        if not fixed:
            step = _last_step(folder)
            changes = "".join(f"; {line}" for line in changed.values())
            log_fn(f"resume auto: {folder} is resumed from step {step}{changes}")
            return resume_config(folder, {name: getattr(config, name) for name in changed})
        reason = reason or f"{folder} is another run: {'; '.join(fixed.values())}"
    reason = reason or f"{config.work_dir} has no unfinished run {name}"
    log_fn(f"resume auto: a new run starts: {reason}")
    return complete_config(dataclasses.replace(config, resume=None))


def record_start(folder: Path, given: dict[str, Any]) -> None:
    """Writes the given settings of a new run, and removes the result of a resumed one."""
    (folder / RESULT_FILE).unlink(missing_ok=True)
    if not (folder / GIVEN_FILE).exists():
        write_json(folder / GIVEN_FILE, given)


def _unfinished_runs(work_dir: Path, name: str) -> Iterator[Path]:
    """Folders `name`, `name-2`, ... of runs with a checkpoint and no complete result, newest first.

    Runs of versions that stored no given settings are left out: they must be named.
    """
    pattern = re.compile(re.escape(name) + r"(-\d+)?")
    paths = work_dir.iterdir() if work_dir.is_dir() else ()
    runs = [
        path
        for path in paths
        if pattern.fullmatch(path.name)
        and all((path / file).is_file() for file in (GIVEN_FILE, CONFIG_FILE))
    ]
    for folder in sorted(runs, key=lambda run: (run / CONFIG_FILE).stat().st_mtime, reverse=True):
        result = folder / RESULT_FILE
        is_complete = result.is_file() and _read_json(result).get("interrupted") is None
        if not is_complete and _last_step(folder) is not None:
            yield folder


def _last_step(folder: Path) -> int | None:
    """Step of the last checkpoint of a run, 0 in its pretraining; None: there is none."""
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None:
        return int(read_checkpoint_metadata(checkpoint)["step"])
    return None if latest_checkpoint(folder / PRETRAIN_FOLDER) is None else 0


def _differences(
    stored: dict[str, Any], given: dict[str, Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """Settings that differ, with both values: those that make another run, and the others."""
    defaults = {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _PLACE_FIELDS
    }
    fixed: dict[str, str] = {}
    changed: dict[str, str] = {}
    for name, default in defaults.items():
        before, now = stored.get(name, default), given.get(name, default)
        if before != now:
            target = changed if CHANGEABLE_FIELDS.get(name) == "auto" else fixed
            target[name] = f"{name} was {json.dumps(before)}, is {json.dumps(now)}"
    return fixed, changed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable: {error}; name the run to resume, or remove its folder"
        ) from None
    return values if isinstance(values, dict) else {}
