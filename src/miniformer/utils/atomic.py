"""Atomic writes: a file or folder at its final path is complete, or it is the previous one.

Every file gets the permissions that the umask gives, whichever library writes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self


class PendingFile:
    """Temporary file in a folder; `commit` gives it its final name.

    Args:
        folder: folder of the final name, so that renaming is atomic.

    Attributes:
        path: the temporary file, empty at first; it may be replaced by another file.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".{os.getpid()}-{secrets.token_hex(8)}.part"
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        # The mode of a new file reflects the umask and the folder's access list.
        self._mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)

    def commit(self, path: Path, *, durable: bool = False) -> None:
        """Renames the file to `path`, in the same folder, replacing an existing file."""
        if stat.S_IMODE(self.path.stat().st_mode) != self._mode:  # safetensors sets 0600
            self.path.chmod(self._mode)
        if durable:
            fsync(self.path)
        os.replace(self.path, path)
        if durable:
            fsync(path.parent)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Temporary path that becomes `path` when the block ends without an error.

    After an error the temporary file is removed and `path` is as before. Several processes may
    write the same path at once: the last one to finish wins.

    Args:
        path: final path.
        durable: whether the file and its name survive a power loss (fsync).

    Raises:
        OSError: the folder cannot be written.
    """
    with PendingFile(path.parent) as pending:
        yield pending.path
        pending.commit(path, durable=durable)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes a UTF-8 text file atomically, without newline translation."""
    write_bytes(path, text.encode(), durable=durable)


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys) + "\n")


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Writes a file atomically."""
    with atomic_path(path, durable=durable) as tmp_path:
        tmp_path.write_bytes(content)


def backup_path(directory: Path) -> Path:
    """Path of the previous directory while a new one replaces it."""
    return directory.with_name(directory.name + ".old")


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """New empty folder that replaces `directory` when the block ends without an error.

    A kill between the two renames leaves the previous directory as `backup_path(directory)`; the
    next call restores it first. An existing empty directory is filled, not replaced: it may be the
    current directory of a shell.

    Raises:
        OSError: the folder cannot be written; `directory` is as before.
    """
    directory = directory.absolute()
    tmp_path, backup = directory.with_name(directory.name + ".part"), backup_path(directory)
    try:
        if backup.exists() and not directory.exists():
            os.replace(backup, directory)
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir(parents=True)
        yield tmp_path
        if directory.is_dir() and not any(directory.iterdir()):
            for item in tmp_path.iterdir():
                os.replace(item, directory / item.name)
            tmp_path.rmdir()
            return
        shutil.rmtree(backup, ignore_errors=True)
        if directory.exists():
            os.replace(directory, backup)
        os.replace(tmp_path, directory)
        shutil.rmtree(backup, ignore_errors=True)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise


def fsync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
