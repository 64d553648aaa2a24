"""Runs with plugged-in batch orders resume bit-exactly after a kill, as in `test_resume_kinds`."""

import contextlib

import pytest
import torch

from miniformer.data.batching import chunks
from miniformer.training.resume.config import resume_config
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.run import train
from tests.e2e.test_resume_kinds import LARGE, Stop, Stopped, left_by, settings
from tests.kit.plugins import registered

RUNS = {
    "curriculum": {"task": "classification", "limits": LARGE,
                   "batch_order": {"type": "short_first", "batches": 8, "column": "inputs"}},
    "poisson": {"limits": {}, "batch_order": {"type": "poisson", "q": 0.2}, "seq_len": 16},
    "empty batches": {"limits": {}, "batch_order": {"type": "poisson", "q": 0.02}, "seq_len": 16,
                      "optimizer": "adamw"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def plugins():
    torch.set_num_threads(1)
    with registered():
        yield


@pytest.mark.parametrize("kind", RUNS)
def test_run_with_plugged_in_data_resumes_bit_exactly(tmp_path, monkeypatch, kind):
    changes = {"max_steps": 11, **RUNS[kind]}
    for name, value in changes.pop("limits").items():
        monkeypatch.setattr(chunks, name, value)
    train(settings(tmp_path, "whole", **changes))
    with contextlib.suppress(Stopped):
        train(settings(tmp_path, "killed", **changes), callbacks=[Stop(8)])
    state = read_checkpoint_metadata(latest_checkpoint(tmp_path / "killed"))
    assert state["step"] == 6
    train(resume_config(tmp_path / "killed", {}))
    reference, killed = left_by(tmp_path / "whole"), left_by(tmp_path / "killed")
    for part, left in reference.items():
        assert killed[part] == left, part
    if kind == "curriculum":
        assert state["data"]["order"]["num_served"] > 0
