"""Several devices give the losses, weights and states of one device, with each strategy.

`test_device_matrix.py` does the same for each task.

Two and four processes on the CPU stand for devices. Each launch makes several runs, since starting
processes takes longer than any of them.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import miniformer
from miniformer import TrainConfig
from miniformer.config import UserError
from miniformer.training.distributed import launcher
from miniformer.training.distributed.launcher import launch, worker_context
from miniformer.training.run import train
from tests.kit import ROOT, VERSE, environment, write_jsonl
from tests.kit.pictures import NO_PICTURES, draw_pictures

pytestmark = pytest.mark.usefixtures("fast_launch")

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "dropout": 0.0}
MODEL |= {"bias": False}  # that of a key has no gradient but rounding, which Adam would blow up
CHATS = {"train": "chats.jsonl", "val": "chats_val.jsonl"}
STEPS = 50
WORDS = VERSE.split()


def write_data(folder):
    # Documents end within windows, and 23 batches a pass are shared by two and by four.
    write_jsonl(folder / "train.jsonl", [" ".join(WORDS[i % 9 :]) for i in range(24)])
    write_jsonl(folder / "val.jsonl", [VERSE, VERSE[:40], VERSE[7:]])
    chats = [
        {"messages": [
            {"role": ("user", "assistant")[n % 2], "content": " ".join(WORDS[i % 9 :][: 2 + n])}
            for n in range(2 + 2 * (i % 2))
        ]}
        for i in range(48)
    ]  # fmt: skip
    for part, count in (("chats", 48), ("chats_val", 4)):
        lines = [json.dumps(record) + "\n" for record in chats[:count]]
        (folder / f"{part}.jsonl").write_text("".join(lines))


def config(folder, name, **changes):
    if "task_config" in changes:
        changes |= {f"{x}_path": str(folder / y) for x, y in CHATS.items()}
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "val.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "seq_len": 16, "batch_size": 6, "lr": 1e-2,
        "max_steps": STEPS, "val_check_interval": 20, "checkpoint_interval": 15, "logger": "none",
        "optimizer": "adamw", "precision": "float32", "work_dir": str(folder / "runs"),
        "experiment_name": name, **changes,
    })  # fmt: skip


def rows(folder, name):
    values = {}
    for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key in ("train_loss", "val_loss", "val_accuracy", "tokens", "grad_norm"):
            if key in row:
                values[row["step"], key] = row[key]
    return values


def assert_same(folder, alone_name, together_name, steps=STEPS, tolerance=1e-5):
    alone, together = rows(folder, alone_name), rows(folder, together_name)
    assert alone.keys() == together.keys()
    assert {step for step, name in alone if name == "train_loss"} == set(range(1, steps + 1))
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, abs=tolerance, rel=tolerance), key


# One process with several batches per step, and several processes with fewer.
PAIRS = {
    "ddp": {},
    "fsdp2": {},
    "muon": {"optimizer": "muon"},
    "averaged": {"ema_decay": 0.9, "average_checkpoints": 2},
    "chats": {
        "task_config": {"chat_template": "chatml"}, "seq_len": 256, "batch_size": 1,
        "model_config": {**MODEL, "max_seq_len": 256},
    },
}  # fmt: skip
TOGETHER = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "muon": {"strategy": "fsdp2"},
    "averaged": {"strategy": "fsdp2"},
    "chats": {"strategy": "ddp"},
}


def worker(settings, path):
    """All runs of two devices, in one launch."""
    with worker_context(path) as write_outcome:
        draw_pictures(pytest.MonkeyPatch(), NO_PICTURES)
        folder = Path(TrainConfig.from_dict(settings).work_dir).parent
        for name, changes in TOGETHER.items():
            train(config(folder, f"{name}-2", devices=2, **PAIRS[name], **changes))
        train(TrainConfig(resume=str(folder / "runs" / "from-1")))
        write_outcome({"done": True})


def worker_of_four(settings, path):
    with worker_context(path) as write_outcome:
        draw_pictures(pytest.MonkeyPatch(), NO_PICTURES)
        train(TrainConfig.from_dict(settings))
        write_outcome({"done": True})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    write_data(folder)
    for name in PAIRS:
        train(config(folder, f"{name}-1", accumulate_grad_batches=2, **PAIRS[name]))
    # A run of one device that is stopped after the checkpoint of step 45, to resume on two.
    runs = folder / "runs"
    shutil.copytree(runs / "fsdp2-1", runs / "from-1")
    settings = json.loads((runs / "from-1" / "train_config.json").read_text())
    settings |= {"devices": 2, "strategy": "fsdp2", "accumulate_grad_batches": 1, "max_steps": 60}
    (runs / "from-1" / "train_config.json").write_text(json.dumps(settings))
    launch_all = config(folder, "launch", devices=2)
    launch(launch_all, worker, launch_all.to_dict())
    return folder


@pytest.mark.parametrize("name", PAIRS)
def test_two_devices_have_the_losses_of_one_device(folder, name):
    assert_same(folder, f"{name}-1", f"{name}-2")


def test_accumulated_conversations_are_those_of_a_large_batch(folder):
    """Windows of packed conversations have different numbers of learned tokens."""
    train(config(folder, "chats-large", **{**PAIRS["chats"], "batch_size": 2}))
    assert_same(folder, "chats-large", "chats-1")


def test_two_devices_save_a_usable_model(folder):
    for name in ("ddp-2", "fsdp2-2", "averaged-2"):
        m = miniformer.load(folder / "runs" / name / "best")
        assert isinstance(m.generate("The", max_new_tokens=3), str)
    assert (folder / "runs" / "fsdp2-2" / "samples.jsonl").read_text().count("\n") == 3


def test_checkpoint_is_resumed_on_any_number_of_devices(folder):
    """1 -> 2 above; 2 -> 4 and 2 -> 1 here. The reference is one device all the way."""
    runs = folder / "runs"
    for name in ("alone", "from-2-to-1", "from-2-to-4"):
        source = "fsdp2-1" if name == "alone" else "fsdp2-2"
        shutil.copytree(runs / source, runs / name)
    # Four devices take twice as many batches per step; the reference does, too.
    shutil.copytree(runs / "fsdp2-1", runs / "alone-4")
    train(TrainConfig(resume=str(runs / "alone"), max_steps=60))
    train(TrainConfig(resume=str(runs / "alone-4"), max_steps=60, accumulate_grad_batches=4))
    from miniformer.training.resume.config import resume_config

    train(resume_config(runs / "from-2-to-1",
                   {"devices": 1, "accumulate_grad_batches": 2, "max_steps": 60}))  # fmt: skip
    four = resume_config(runs / "from-2-to-4", {"devices": 4, "max_steps": 60})
    launch(four, worker_of_four, four.to_dict())
    assert_same(folder, "alone", "from-1", steps=60)
    assert_same(folder, "alone", "from-2-to-1", steps=60)
    assert_same(folder, "alone-4", "from-2-to-4", steps=60)


def test_worker_user_error_is_raised(folder, monkeypatch):
    monkeypatch.setattr(launcher, "START_METHOD", "spawn")  # as outside tests
    wrong = config(folder, "wrong", devices=2, train_path=str(folder / "missing.jsonl"))
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        train(wrong)


@pytest.mark.slow
def test_torchrun_on_two_machines_trains_one_model(folder):
    """Both on loopback: a group of processes each, as on two machines."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run = config(folder, "nodes", num_nodes=2, max_steps=50)
    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
             for name, value in run.non_default_fields().items()]  # fmt: skip
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
             f"--node_rank={node}", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}",
             f"--rdzv_conf=is_host={1 - node}", "-m", "miniformer.trainer", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
            cwd=ROOT,
        )
        for node in range(2)
    ]  # fmt: skip
    outputs = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert_same(folder, "ddp-1", "nodes")
    assert sum("run folder" in output for output in outputs) == 1  # printed by rank 0 only


def test_num_nodes_without_torchrun_is_refused(folder):
    assert "LOCAL_RANK" not in os.environ
    with pytest.raises(UserError, match="torchrun --nnodes 2 --nproc_per_node 1"):
        train(config(folder, "nodes", num_nodes=2))
