"""Runs with batch orders and mixtures resume bit-exactly after a kill."""

import contextlib
import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console

from miniformer.config import UserError
from miniformer.data.batching import chunks
from miniformer.training.resume.config import resume_config
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.run import train
from tests.e2e.test_resume_kinds import LARGE, MODEL, Stop, Stopped, left_by, settings
from tests.kit import write_jsonl
from tests.kit.plugins import registered

RUNS = {
    "curriculum": {"task": "classification", "limits": LARGE,
                   "batch_order": {"type": "short_first", "batches": 8, "column": "inputs"}},
    "poisson": {"limits": {}, "batch_order": {"type": "poisson", "q": 0.2}, "seq_len": 16},
    "empty batches": {"limits": {}, "batch_order": {"type": "poisson", "q": 0.02}, "seq_len": 16,
                      "optimizer": "adamw"},
    "mixture": {"limits": {}, "weights": (1, 4), "seq_len": 16, "batch_size": 2,
                "batch_order": "reverse"},
    "whole packing": {"limits": {}, "parts": True, "seq_len": 24,
                      "task_config": {"packing": "best_fit"}},
    "parts": {"limits": LARGE, "parts": True, "seq_len": 24},
    "large mixture": {"limits": LARGE, "weights": (5, 1), "task": "classification",
                      "num_workers": 1},
}  # fmt: skip


def run_settings(folder, name, **changes):
    """Settings of a run.

    With `weights`, the training data is a mixture of its two halves; with `parts`, the start of
    most texts is not learned.
    """
    weights, has_parts = changes.pop("weights", None), changes.pop("parts", False)
    config = settings(folder, name, **changes)
    if has_parts:
        for path in (folder / "train.jsonl", folder / "val.jsonl"):
            texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
            parts = [
                text if index % 3 == 0
                else [{"text": text[:6], "learn": False}, {"text": text[6:]}]
                for index, text in enumerate(texts)
            ]  # fmt: skip
            write_jsonl(path, parts)
    if weights is None:
        return config
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    sources = []
    for part, weight in enumerate(weights):
        path = folder / f"part-{part}.jsonl"
        path.write_text("".join(lines[15 * part : 15 * part + 15]))
        sources.append({"path": str(path), "weight": weight})
    return dataclasses.replace(config, train_path=sources)


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
    train(run_settings(tmp_path, "whole", **changes))
    with contextlib.suppress(Stopped):
        train(run_settings(tmp_path, "killed", **changes), callbacks=[Stop(8)])
    state = read_checkpoint_metadata(latest_checkpoint(tmp_path / "killed"))
    assert state["step"] == 6
    train(resume_config(tmp_path / "killed", {}))
    reference, killed = left_by(tmp_path / "whole"), left_by(tmp_path / "killed")
    for part, left in reference.items():
        assert killed[part] == left, part
    if kind == "curriculum":
        assert state["data"]["order"]["num_served"] > 0


@pytest.mark.catches("changed_weights_are_not_noticed")
def test_resume_refuses_other_weights_of_sources(tmp_path):
    config = run_settings(
        tmp_path, "run", max_steps=2, weights=(1, 4), model_config={**MODEL, "n_layers": 1}
    )
    out = io.StringIO()
    train(config, console=Console(file=out, width=200))
    assert "epoch: 30 records: 6 of" in out.getvalue()
    assert "part-0.jsonl (0.4 times each of its 15), 24 of" in out.getvalue()
    sources = [{**source, "weight": 1} for source in config.train_path]
    with pytest.raises(UserError, match=r"has changed: it had 30 records, .* weights 1 of 15 reco"):
        train(resume_config(tmp_path / "run", {"train_path": sources, "max_steps": 4}))
