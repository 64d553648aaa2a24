"""Folders of runs."""

import errno
import os
import platform
import subprocess
import sys
import threading

import pytest

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.setup import run_folder
from miniformer.training.setup.run_folder import (
    LOCK_FILE,
    RunLock,
    create_run_folder,
    folder_errors,
)

# A process with a lock of its own, without this package, until its input ends.
HOLDER = (
    "import fcntl, sys\n"
    "file = open(sys.argv[1], 'a')\n"
    "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    "file.truncate(0)\n"
    "print(sys.argv[2], file=file, flush=True)\n"
    "print('locked', flush=True)\n"
    "sys.stdin.read()\n"
)


def hold(folder, owner="1234 on another-machine"):
    """Starts a process that locks a run folder, if it can; waits for its first line."""
    command = [sys.executable, "-I", "-S", "-c", HOLDER, folder / LOCK_FILE, owner]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    return process, process.stdout.readline().strip()


@pytest.mark.catches("run_overwrites_the_one_before")
def test_run_folders_are_unique(tmp_path):
    folders = [create_run_folder(tmp_path / "a" / "runs", "name") for _ in range(3)]
    assert [folder.name for folder in folders] == ["name", "name-2", "name-3"]
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.catches("second_run_shares_a_folder")
def test_folder_in_use_is_refused_to_another_process(tmp_path):
    with RunLock(str(tmp_path)) as lock:
        new = lock.acquire(create_run_folder(tmp_path, "new"))
        for folder in (tmp_path, new):
            assert (folder / LOCK_FILE).read_text() == f"{os.getpid()} on {platform.node()}\n"
            process, line = hold(folder)
            assert line == ""
            assert "BlockingIOError" in process.communicate()[1]
    assert not (tmp_path / LOCK_FILE).exists()
    assert not (new / LOCK_FILE).exists()
    process, line = hold(tmp_path)
    assert line == "locked"
    with pytest.raises(UserError) as caught, RunLock(str(tmp_path)):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: the process 1234 on another-machine is training in this folder; wait until "
        "it ends, or leave resume out for a new run"
    )
    process.kill()  # the lock ends with its process, the file stays
    process.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    with RunLock(str(tmp_path)):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_file_system_without_locks_has_none(tmp_path, monkeypatch):
    import fcntl

    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(str(tmp_path)), RunLock(str(tmp_path / "missing")):
        assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.catches("a_lock_does_not_wait_for_workers")
def test_lock_waits_for_the_workers_of_a_killed_process(tmp_path, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    gone.wait()
    process, line = hold(tmp_path, f"{gone.pid} on {platform.node()}")
    assert line == "locked"
    threading.Timer(0.5, process.communicate).start()
    with RunLock(str(tmp_path)):
        process.wait()
        newcomer, line = hold(tmp_path)
        assert line == ""
        newcomer.communicate()
    process, line = hold(tmp_path, f"{gone.pid} on {platform.node()}")
    monkeypatch.setattr(run_folder, "WORKER_SECONDS", 0.2)
    with pytest.raises(UserError, match="is training in this folder"), RunLock(str(tmp_path)):
        pass
    process.communicate()


def test_folder_whose_lock_file_is_removed_meanwhile_is_locked(tmp_path, monkeypatch):
    """The process that ends removes the file that another one has opened."""
    import fcntl

    lock, calls = fcntl.flock, []

    def remove_first(*args):
        lock(*args)
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(args)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with RunLock(str(tmp_path)):
        process, line = hold(tmp_path)
        assert line == ""
        process.communicate()


def test_lock_of_a_process_that_runs_is_respected(tmp_path):
    process, _ = hold(tmp_path, f"{os.getpid()} on {platform.node()}")
    with pytest.raises(UserError, match="is training in this folder"), RunLock(str(tmp_path)):
        pass
    process.communicate()


@pytest.mark.parametrize(("is_used", "advice"), [(True, "continue with"), (False, "set work_dir")])
@pytest.mark.catches("a_run_that_was_not_written_is_to_be_resumed")
def test_full_disk_advises_to_resume_only_what_is_there(tmp_path, is_used, advice):
    config = TrainConfig(train_path="a.jsonl", work_dir=str(tmp_path))

    def fill_disk():
        with folder_errors(config) as created:
            folder = create_run_folder(tmp_path, "run", created)
            if is_used:
                (folder / "metrics.jsonl").write_text("{}\n")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=f"No space left on device; .*{advice}") as caught:
        fill_disk()
    assert (tmp_path / "run").exists() is is_used
    assert ("resume" in str(caught.value)) is is_used
