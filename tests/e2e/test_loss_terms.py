"""Loss terms, helper models and steps of several passes in whole runs: devices, accumulation, kill.

Two processes on the CPU stand for devices, as in `test_devices.py`.
"""

import json
import os
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from miniformer import TrainConfig
from miniformer.config import UserError
from miniformer.training.distributed.launcher import launch, worker_context
from miniformer.training.run import train
from tests.e2e.test_callback_states import killed
from tests.kit import VERSE, loss_plugins, write_jsonl
from tests.kit.pictures import NO_PICTURES, draw_pictures

pytestmark = pytest.mark.usefixtures("fast_launch")

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "dropout": 0.0}
MODEL |= {"bias": False}  # see test_devices.py
STEPS = 4
WORDS = VERSE.split()
TERMS = [
    {"type": "row_length", "weight": 0.2},
    {"type": "z_loss", "weight": 0.01},
    {"type": "drift", "weight": 0.3},
]
# Runs of two devices, and how many batches a step of the same run on one device has.
RUNS = {
    "terms": ({"loss_terms": TERMS}, 2),
    "accumulated": ({"loss_terms": TERMS, "accumulate_grad_batches": 2}, 4),
    "chunked": ({"loss_terms": TERMS, "task": "chunked"}, 2),
}


def config(folder, name, **changes):
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "val.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "seq_len": 16, "batch_size": 3, "lr": 1e-2,
        "max_steps": STEPS, "val_check_interval": 2, "checkpoint_interval": 2, "logger": "none",
        "optimizer": "adamw", "precision": "float32", "work_dir": str(folder / "runs"),
        "experiment_name": name, **changes,
    })  # fmt: skip


def worker(settings, path):
    """All runs of two devices, in one launch."""
    with worker_context(path) as write_outcome, loss_plugins.registered():
        draw_pictures(pytest.MonkeyPatch(), NO_PICTURES)
        folder = Path(settings["work_dir"]).parent
        for name, (changes, _) in RUNS.items():
            train(config(folder, f"{name}-2", devices=2, **changes))
        write_outcome({"done": True})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terms")
    # Documents end within windows, and 23 batches a pass are shared by two.
    write_jsonl(folder / "train.jsonl", [" ".join(WORDS[i % 9 :]) for i in range(12)])
    write_jsonl(folder / "val.jsonl", [VERSE, VERSE[:40], VERSE[7:]])
    with loss_plugins.registered():
        for name, (changes, accumulate) in RUNS.items():
            train(config(folder, f"{name}-1", **{**changes, "accumulate_grad_batches": accumulate}))
        launch_all = config(folder, "launch", devices=2)
        launch(launch_all, worker, launch_all.to_dict())
        yield folder


def metrics(folder, name):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    names = ("train_loss", "val_loss", "grad_norm")
    names += tuple(f"{s}_{t['type']}" for s in ("train", "val") for t in TERMS)
    rows = [json.loads(line) for line in lines]
    return {(row["step"], key): row[key] for row in rows for key in names if key in row}


def drift(folder, name):
    """The running mean of the term with state, in the last checkpoint."""
    checkpoint = max((folder / "runs" / name / "checkpoints").glob("step-*"))
    files = [load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    states = [x for file in files for key, x in file.items() if key.startswith("callbacks.")]
    assert states
    return [state.view(torch.float32) for state in states]


@pytest.mark.catches("terms_are_not_reduced", "own_passes_are_not_averaged")
@pytest.mark.parametrize("name", RUNS)
def test_devices_give_the_terms_of_one(folder, name):
    alone, together = metrics(folder, f"{name}-1"), metrics(folder, f"{name}-2")
    assert alone.keys() == together.keys()
    assert {"train_drift", "val_drift", "train_z_loss", "val_row_length"} <= {k for _, k in alone}
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, abs=1e-5, rel=1e-5), key
    (mean,) = drift(folder, f"{name}-1")
    for state in drift(folder, f"{name}-2"):  # one of each device
        torch.testing.assert_close(state, mean, rtol=1e-4, atol=1e-5)


def test_chunks_are_the_same_run(folder):
    plain, chunked = metrics(folder, "terms-1"), metrics(folder, "chunked-1")
    assert chunked == {key: pytest.approx(value, rel=1e-4) for key, value in plain.items()}


class Kill(L.Callback):
    """Kills the process within the fourth step, of two batches."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == 3 and not module.between_steps:
            os.kill(os.getpid(), signal.SIGKILL)


def weights(folder, name):
    return load_file(folder / "runs" / name / "last" / "model.safetensors")


@pytest.mark.catches("states_of_terms_are_not_restored")
def test_state_of_terms_and_a_teacher_survive_a_kill(folder):
    """Bit for bit, with batches accumulated; the teacher is no part of the model or its files."""
    teacher = str(folder / "runs" / "terms-1" / "last")
    changes = {
        "task": "distillation", "task_config": {"teacher": teacher}, "loss_terms": TERMS,
        "accumulate_grad_batches": 2, "ema_decay": 0.9, "model_config": {**MODEL, "dropout": 0.1},
    }  # fmt: skip
    train(config(folder, "whole", **changes))
    killed(config(folder, "killed", **changes), [Kill()])
    train(TrainConfig(resume=str(folder / "runs" / "killed")))
    uninterrupted, resumed = metrics(folder, "whole"), metrics(folder, "killed")
    assert resumed == uninterrupted
    assert {(STEPS, "val_drift"), (STEPS, "train_drift")} <= uninterrupted.keys()
    assert torch.equal(*(drift(folder, name)[0] for name in ("whole", "killed")))
    expected, actual = weights(folder, "whole"), weights(folder, "killed")
    assert expected.keys() == actual.keys() == weights(folder, "terms-1").keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    rows = [json.loads(x) for x in (folder / "runs/whole/metrics.jsonl").read_text().splitlines()]
    assert "val_kl" in rows[-1]


def test_changed_terms_are_another_run(folder):
    with pytest.raises(UserError, match="resume: loss_terms is"):
        train(TrainConfig(resume=str(folder / "runs" / "terms-1"), loss_terms=["z_loss"]))
