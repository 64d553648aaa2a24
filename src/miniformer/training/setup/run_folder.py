"""The folder of a run: made under a free name, removed again if nothing was trained."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from miniformer.config import UserError
from miniformer.training.resume.storage import CHECKPOINTS_DIR


@contextlib.contextmanager
def remove_unused_folders_on_error() -> Iterator[list[Path]]:
    """List to which a run adds the folder it makes; after an error the unused ones are removed.

    Used is a folder with a step, a model or a state in it, also one of its pretraining.
    """
    created: list[Path] = []
    try:
        yield created
    except BaseException:
        for folder in created:
            if not _is_used(folder):
                shutil.rmtree(folder, ignore_errors=True)
        raise


def _is_used(folder: Path) -> bool:
    """Whether a step was recorded in a run's folder, or a model or a state is in it."""
    steps = (path for path in folder.rglob("metrics.jsonl") if path.stat().st_size)
    results = (folder.rglob(name) for name in ("model.safetensors", f"{CHECKPOINTS_DIR}/step-*"))
    return any(True for _ in steps) or any(True for found in results for _ in found)


def create_run_folder(work_dir: Path, name: str, created: list[Path] | None = None) -> Path:
    """Makes `work_dir/name`, or the first free `name-2`, `name-3`...: no run overwrites another.

    Args:
        work_dir: made if missing.
        name: of one folder.
        created: the new folder is added here.

    Raises:
        UserError: it cannot be made.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"work_dir: cannot make {work_dir}: {error.strerror}") from None
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
            raise UserError(f"work_dir: cannot make {folder}: {error.strerror}") from None
