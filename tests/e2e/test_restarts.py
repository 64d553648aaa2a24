"""Process groups that torchrun restarts after a kill resume bit-exactly."""

import json
import random
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.distributed import TCPStore

import miniformer
from miniformer import TrainConfig
from miniformer.training.distributed.restarts import rendezvous
from miniformer.training.run import train
from tests.kit import ROOT, VERSE, environment, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "dropout": 0.2}
WORDS = VERSE.split()
STEPS = 30
SCRIPT = """
import json, os, signal, sys
import lightning as L
from miniformer import TrainConfig
from miniformer.training.run import train

config, kills = json.loads(sys.argv[1])

class Kill(L.Callback):
    def on_train_batch_start(self, trainer, *args):
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if attempt < len(kills) and kills[attempt] == [trainer.global_step, trainer.global_rank]:
            os.kill(os.getpid(), signal.SIGKILL)

train(TrainConfig.from_dict(config), callbacks=[Kill])
"""


def config(folder, work_dir, **changes):
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "val.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "seq_len": 16, "batch_size": 6, "lr": 1e-2,
        "max_steps": STEPS, "val_check_interval": 8, "checkpoint_interval": 3, "logger": "none",
        "precision": "float32", "ema_decay": 0.9, "devices": 2, "strategy": "fsdp2",
        "work_dir": str(folder / work_dir), "experiment_name": "run", **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and a run without interruption."""
    folder = tmp_path_factory.mktemp("restarts")
    write_jsonl(folder / "train.jsonl", [" ".join(WORDS[i % 9 :]) for i in range(24)])
    write_jsonl(folder / "val.jsonl", [VERSE])
    (folder / "script.py").write_text(SCRIPT)
    train(config(folder, "whole"))
    return folder


def torchrun(folder, work_dir, kills, *flags):
    order = json.dumps([config(folder, work_dir).to_dict(), kills])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
         f"--max_restarts={len(kills)}", *flags, str(folder / "script.py"), order],
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_as_uninterrupted(folder, work_dir):
    assert [path.name for path in (folder / work_dir).iterdir()] == ["run"]
    for name in ("best", "last"):
        expected = miniformer.load(folder / "whole" / "run" / name).model.state_dict()
        state_dict = miniformer.load(folder / work_dir / "run" / name).model.state_dict()
        for key, tensor in expected.items():
            assert torch.equal(state_dict[key], tensor), f"{name}: {key}"


@pytest.mark.slow
@pytest.mark.catches("restart_begins_a_new_folder")
def test_killed_group_resumes_in_its_folder(folder):
    output = torchrun(folder, "once", [[14, 1]], "--standalone")
    assert_same_as_uninterrupted(folder, "once")
    assert "resuming from" in output


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("rendezvous", ["c10d", "static"])
def test_torchrun_with_five_random_kills_resumes_bit_exactly(folder, rendezvous):
    """The first kill comes before the first checkpoint, the others anywhere after a resumption."""
    rng, kills, step = random.Random(rendezvous), [[1, 1]], 0
    for _ in range(4):
        step = min(step + rng.randint(3, 8), STEPS - 1)
        kills.append([step, rng.randrange(2)])
    flags = ["--standalone"]
    if rendezvous == "static":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            flags = [f"--master_port={free.getsockname()[1]}"]
    torchrun(folder, rendezvous, kills, *flags)
    assert_same_as_uninterrupted(folder, rendezvous)


@pytest.mark.catches("attempts_share_a_store")
def test_rendezvous_ignores_keys_of_earlier_attempts():
    server, left = TCPStore("localhost", 0, is_master=True), []

    def client():
        return TCPStore("localhost", server.port, is_master=False)

    def attempt(ranks, ranks_done, late=()):
        def work(rank):
            if rank in late:
                time.sleep(0.3)
            store = rendezvous(client(), rank, 3, poll_seconds=0.1)
            left.append(store.check([f"here/{rank}"]))  # by an earlier attempt
            store.set(f"here/{rank}", "")
            store.wait([f"here/{i}" for i in ranks])
            ranks_done.append(rank)

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in ranks]
        for thread in threads:
            thread.start()
        return threads

    for late in ((), (0,), (1,)):
        ranks_done = []
        for thread in attempt(range(3), ranks_done, late):
            thread.join(timeout=30)
        assert sorted(ranks_done) == [0, 1, 2]
        assert not any(left)
        server.set("attempt", "0" * 32)  # of a first process that died before it answered
