"""Worker processes: their errors and threads."""

import json
import os

import pytest
import torch

from miniformer.config import UserError
from miniformer.training.distributed.launcher import worker_context


@pytest.mark.catches("mistake_of_a_worker_is_lost")
def test_worker_returns_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "outcome.json"
    with pytest.raises(SystemExit), worker_context(str(path)):
        raise UserError("seq_len is too long")
    assert json.loads(path.read_text()) == {"error": "seq_len is too long"}


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, 4), (8, None, 8), (2, 4, 1)])
def test_worker_threads_share_the_cores(tmp_path, monkeypatch, cores, workers, threads):
    set_to = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if workers is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(workers))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    with worker_context(str(tmp_path / "outcome.json")):
        pass
    assert set_to == [threads]
