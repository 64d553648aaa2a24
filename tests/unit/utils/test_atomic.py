"""Atomic writes: complete or not at all, permissions by umask, no leftover files."""

import errno
import os
import resource
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniformer.utils.atomic import (
    PendingFile,
    atomic_directory,
    atomic_path,
    backup_path,
    write_bytes,
    write_text,
)


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path):
    return path.stat().st_mode & 0o777


@pytest.mark.catches("commit_keeps_private_mode")
def test_atomic_path_respects_umask(tmp_path, umask):
    write_text(tmp_path / "a", "text")
    write_bytes(tmp_path / "b", b"bytes")
    with atomic_path(tmp_path / "c") as path:
        save_file({"x": torch.ones(3)}, path)  # replaces the file by one of mode 0600
    assert [_mode(tmp_path / name) for name in "abc"] == [0o666 & ~umask] * 3
    assert load_file(tmp_path / "c")["x"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("durable", [False, True])
def test_atomic_path_replaces_content(tmp_path, durable):
    path = tmp_path / ("n" * 250)  # within the limit of a name, and its temporary name is, too
    for text in ("one\r\ntwo\n", "日本\n"):
        write_text(path, text, durable=durable)
        assert path.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_write_text_durable_flushes_file_then_folder(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def noted(descriptor):
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(tmp_path / "a", "text", durable=True)
    write_text(tmp_path / "b", "text")
    (file, folder) = flushed
    assert folder == tmp_path
    assert file.parent == tmp_path


@pytest.mark.catches("atomic_path_writes_in_place")
def test_atomic_path_failure_keeps_previous_file(tmp_path):
    write_text(tmp_path / "a", "before")

    def interrupted():
        with atomic_path(tmp_path / "a") as path:
            path.write_text("half")
            assert (tmp_path / "a").read_text() == "before"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.catches("atomic_path_writes_in_place", "failed_write_leaves_temporary_file")
def test_write_bytes_without_room_leaves_nothing(tmp_path):
    """A write that fails halfway, as on a full disk."""
    write_bytes(tmp_path / "a", b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_bytes(tmp_path / "a", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    assert (tmp_path / "a").read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_atomic_path_of_two_writers_is_one_of_them(tmp_path):
    """Two concurrent writers have separate temporary files; the last to finish wins."""
    both = threading.Barrier(2)

    def write(text):
        with atomic_path(tmp_path / "a") as path:
            path.write_text(text)
            both.wait()
            assert path.read_text() == text

    threads = [threading.Thread(target=write, args=(text * 1000,)) for text in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in ("x" * 1000, "y" * 1000)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_pending_file_without_commit_is_removed(tmp_path):
    with PendingFile(tmp_path) as pending:
        pending.path.write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_atomic_directory_replaces_or_keeps(tmp_path, umask):
    target = tmp_path / "model"
    for text in ("first", "second"):
        with atomic_directory(target) as folder:
            (folder / "file").write_text(text)
        assert (target / "file").read_text() == text
        assert _mode(target) == 0o777 & ~umask

    def stopped():
        with atomic_directory(target) as folder:
            (folder / "file").write_text("third")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stopped()
    assert (target / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_directory_brings_back_what_a_kill_left(tmp_path):
    """A kill between the two renames: only the backup is there."""
    target = tmp_path / "model"
    backup_path(target).mkdir()
    (backup_path(target) / "file").write_text("old")
    with pytest.raises(ValueError, match="stop"), atomic_directory(target):
        raise ValueError("stop")
    assert (target / "file").read_text() == "old"
