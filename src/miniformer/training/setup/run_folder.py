"""Run folders: created under an unused name, locked in use, removed if nothing was trained."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.distributed.launcher import rank
from miniformer.training.resume.auto import record_start
from miniformer.training.resume.config import CONFIG_FILE
from miniformer.training.resume.storage import CHECKPOINTS_DIR
from miniformer.training.setup.run_setup import RunSetup
from miniformer.utils.atomic import write_json

_NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LOCK_FILE = ".lock"  # has the process that trains in the folder
WORKER_SECONDS = 20.0  # wait for the worker processes of a killed one, which end within seconds


@contextlib.contextmanager
def folder_errors(config: TrainConfig) -> Iterator[list[Path]]:
    """Yields a list for the folders of a run; removes the unused ones after an error.

    A folder with a step, a model or a checkpoint of the run or of its pretraining is used.

    Args:
        config: the run; the `work_dir` of a new one is tested first.

    Raises:
        UserError: the disk is full, or nothing can be created in the `work_dir`.
    """
    if config.resume is None:
        _check_writable(Path(config.work_dir))
    created: list[Path] = []
    try:
        yield created
    except BaseException as error:
        _remove_unused(created)
        if not isinstance(error, OSError) or error.errno not in _NO_SPACE_ERRNOS:
            raise
        is_kept = config.resume is not None or any(folder.exists() for folder in created)
        raise UserError(_no_space_message(error, is_kept)) from None


def _check_writable(work_dir: Path) -> None:
    """Creates and removes a file in a folder, or in the nearest one above that exists.

    Raises:
        UserError: it cannot be created.
    """
    try:
        existing = next(path for path in (work_dir, *work_dir.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"work_dir: cannot create {work_dir}: {error.strerror}; set another folder"
        ) from None


def _no_space_message(error: OSError, is_kept: bool) -> str:
    path = f"{error.filename}: " if error.filename else ""
    if not is_kept:
        return f"{path}{error.strerror}; no run was written: free disk space, or set work_dir"
    return (
        f"{path}{error.strerror}; earlier files are complete: free disk space, then continue with "
        "--resume RUN"
    )


def _remove_unused(folders: list[Path]) -> None:
    for folder in folders:
        if not _is_used(folder):
            shutil.rmtree(folder, ignore_errors=True)


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


class RunLock:
    """Context in which run folders are those of this process alone.

    A lock ends with its process, even a killed one. A file system without locks has none.

    Args:
        resume: the folder of a run that is resumed.

    Raises:
        UserError: another process trains in it.
    """

    def __init__(self, resume: str | None = None) -> None:
        self._resume, self._files = resume, contextlib.ExitStack()

    def __enter__(self) -> RunLock:
        if self._resume is not None and rank() == 0:
            self.acquire(Path(self._resume))
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def acquire(self, folder: Path) -> Path:
        """Locks a folder until the context ends; returns the folder.

        Raises:
            UserError: another process trains in it.
        """
        import fcntl  # not on every system

        path = folder / LOCK_FILE
        deadline = time.monotonic() + WORKER_SECONDS
        with contextlib.suppress(FileNotFoundError, PermissionError):  # later steps name these
            while True:
                file = path.open("a+", encoding="utf-8")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_at(file, path):
                        break
                    file.close()  # its process has removed it since
                except BlockingIOError:
                    file.seek(0)
                    owner = file.read().strip()
                    file.close()
                    if not _is_killed(owner) or time.monotonic() > deadline:
                        self._files.close()
                        raise UserError(
                            f"{folder}: the process {owner or 'of another run'} is training in "
                            "this folder; wait until it ends, or leave resume out for a new run"
                        ) from None
                    time.sleep(0.1)
                except OSError:  # no locks here
                    file.close()
                    path.unlink(missing_ok=True)
                    return folder
            self._files.enter_context(file)
            self._files.callback(fcntl.flock, file, fcntl.LOCK_UN)  # for worker processes, too
            self._files.callback(path.unlink, missing_ok=True)
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}\n")
            file.flush()
        return folder


def _is_at(file: TextIO, path: Path) -> bool:
    """True if an open file is the one at a path."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _is_killed(owner: str) -> bool:
    """True for a process of this machine that is gone; its workers have the lock for seconds."""
    pid, _, node = owner.partition(" on ")
    if node != platform.node() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


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
