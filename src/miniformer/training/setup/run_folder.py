"""Run folders: created under an unused name, removed if nothing was trained."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from miniformer.config import UserError
from miniformer.training.resume.auto import record_start
from miniformer.training.resume.config import CONFIG_FILE
from miniformer.training.resume.storage import CHECKPOINTS_DIR
from miniformer.training.setup.prepare import RunSetup
from miniformer.utils.atomic import write_json

_NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def run_folder_errors() -> Iterator[list[Path]]:
    """Yields a list for the folders of a run; removes the unused ones after an error.

    A folder with a step, a model or a checkpoint of the run or of its pretraining is used.

    Raises:
        UserError: the disk is full.
    """
    created: list[Path] = []
    try:
        yield created
    except BaseException as error:
        for folder in created:
            if not _is_used(folder):
                shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError) or error.errno not in _NO_SPACE_ERRNOS:
            raise
        path = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"{path}{error.strerror}; earlier files are complete: free disk space, then continue "
            "with --resume RUN"
        ) from None


def _is_used(folder: Path) -> bool:
    """Returns whether a run folder has a step, a model or a checkpoint."""
    steps = (path for path in folder.rglob("metrics.jsonl") if path.stat().st_size)
    results = (folder.rglob(name) for name in ("model.safetensors", f"{CHECKPOINTS_DIR}/step-*"))
    return any(True for _ in steps) or any(True for paths in results for _ in paths)


def create_run_folder(work_dir: Path, name: str, created: list[Path] | None = None) -> Path:
    """Creates `work_dir/name`, or the first unused `name-2`, `name-3`...

    Args:
        work_dir: created if missing.
        name: name of the folder.
        created: the new folder is added here.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"work_dir: cannot create {work_dir}: {error.strerror}") from None
    number = 1
    while True:
        folder = work_dir / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            if created is not None:
                created.append(folder)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"work_dir: cannot create {folder}: {error.strerror}") from None


def save_setup(folder: Path, run: RunSetup) -> None:
    """Writes the files for resuming: the config, the task settings and the tokenizer."""
    write_json(folder / CONFIG_FILE, {**run.config.to_dict(), "resume": None})
    record_start(folder, run.given)
    write_json(folder / "task.json", run.task.settings())
    if run.tokenizer is not None:
        run.tokenizer.save(folder / "tokenizer.json")
    if run.trials is not None:
        write_json(folder / "trials.json", run.trials)
    if run.lr_search is not None:
        run.lr_search.plot(folder / "lr.png", unit=run.task.loss_unit)
