"""`miniformer verify-resume` accepts runs that restore all state, and rejects all others.

Its child processes are forks of the test process, with the patches of the test.
"""

import json
import os
import re
import sys

import pytest

from miniformer import TrainConfig, UserError, cli
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.training.callbacks.validation import BestModelCheckpoint, ValidationSchedule
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.optim.weight_averaging import Ema
from miniformer.training.resume import callback, verify
from tests.kit import VERSE, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "dropout": 0.2}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command on a small run; returns its exit code and its last line."""

    def forked(order):
        errors = tmp_path / "errors"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                sys.stdout, sys.stderr = open(os.devnull, "w"), errors.open("w")  # noqa: SIM115
                code = verify.run_child(order)
                sys.stderr.flush()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), errors.read_text()

    tokens = VERSE.split()
    write_jsonl(tmp_path / "train.jsonl", [" ".join(tokens[i % 7 :][:9]) for i in range(20)])
    write_jsonl(tmp_path / "val.jsonl", [VERSE[:40]])
    monkeypatch.setattr(verify, "_run_subprocess", forked)
    flags = {
        "train_path": tmp_path / "train.jsonl", "val_path": tmp_path / "val.jsonl",
        "tokenizer": "byte", "model_config": json.dumps(MODEL), "seq_len": 16, "batch_size": 3,
        "val_check_interval": 3, "checkpoint_interval": 2, "max_steps": 12, "precision": "float32",
        "steps": 10, "kills": 2,
    }  # fmt: skip

    def run(**changes):
        given = {**flags, **changes}
        arguments = [f"--{name}={value}" for name, value in given.items()]
        code = cli.main(["verify-resume", *arguments])
        return code, capsys.readouterr().out.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9, "average_checkpoints": 2, "optimizer": "adamw"},
        {"accumulate_grad_batches": 2, "early_stopping_patience": 9},
        {"optimizer": "schedulefree", "scheduler": "none"},
    ],
    ids=str,
)
def test_verify_resume_accepts_a_run_that_restores_all_state(command, changes):
    code, line = command(**changes)
    assert re.fullmatch(
        r"exact: 10 losses, all weights and the rest of the state are equal; "
        r"2 kills, resumed from steps \[\d, \d\]", line
    )  # fmt: skip
    assert code == 0


def test_verify_resume_compares_all_steps_of_a_shorter_run(command):
    code, line = command(max_steps=2)
    assert code == 0
    assert line.startswith("exact: 2 losses")


def test_verify_resume_reports_a_run_that_ends_before_its_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_run_subprocess", lambda request: (0, ""))
    with pytest.raises(UserError, match="the run ended before batch 7"):
        verify._run(TrainConfig(train_path="t.jsonl"), tmp_path, stop_step=9, kill_batch=7)


def forgets_the_optimizer(monkeypatch):
    monkeypatch.setattr(callback, "allocate_optimizer_state", lambda *args: {})


def forgets_options_of_the_optimizer(monkeypatch):
    prepare = callback.allocate_optimizer_state

    def forgetful(model, optimizer, about):
        return prepare(model, optimizer, {**about, "groups": [{} for _ in about["groups"]]})

    monkeypatch.setattr(callback, "allocate_optimizer_state", forgetful)


def forgets_random_numbers(monkeypatch):
    monkeypatch.setattr(callback, "set_rng_state", lambda state: None)


def forgets_the_place_in_the_data(monkeypatch):
    monkeypatch.setattr(MiniFormerDataModule, "load_state_dict", lambda self, state: None)


def forgets_the_schedule(monkeypatch):
    factor = MiniFormerLitModule._lr_factor

    def counted(self, step, epochs=0.0):
        self.own_steps = getattr(self, "own_steps", -1) + 1
        return factor(self, self.own_steps, epochs)

    monkeypatch.setattr(MiniFormerLitModule, "_lr_factor", counted)


def forgets_how_often_it_averaged(monkeypatch):
    monkeypatch.setattr(Ema, "set_extra_state", lambda self, about: None)


def forgets_the_averages(monkeypatch):
    read = callback.load_checkpoint_tensors

    def forgetful(folder, tensors):
        read(folder, {n: tensor for n, tensor in tensors.items() if not n.startswith("averages.")})

    monkeypatch.setattr(callback, "load_checkpoint_tensors", forgetful)


def forgets_the_best(monkeypatch):
    monkeypatch.setattr(BestModelCheckpoint, "load_state_dict", lambda self, state: None)


def forgets_when_it_validated(monkeypatch):
    monkeypatch.setattr(ValidationSchedule, "load_state_dict", lambda self, state: None)


def forgets_its_tokens(monkeypatch):
    restore = callback.ResumeCheckpoint._restore

    def forgetful(self, trainer, module, folder):
        restore(self, trainer, module, folder)
        module.tokens = 0

    monkeypatch.setattr(callback.ResumeCheckpoint, "_restore", forgetful)


AVERAGES = "at the end in: averages, callback best, callback early_stopping"
LATER = {"kills": 2}  # resumed so late that the states do not become equal
LOSSES = r"in the loss of step \d+; at the end in: .*"


@pytest.mark.catches("verify_compares_no_losses", "verify_compares_no_states")
@pytest.mark.parametrize(
    ("plant", "pattern", "changes"),
    [
        (forgets_the_optimizer, LOSSES + "optimizer.*", {}),
        (forgets_options_of_the_optimizer, LOSSES + "model, .*values of the optimizer.*",
         {"optimizer": "schedulefree", "scheduler": "none"}),
        (forgets_random_numbers, LOSSES + "random numbers.*", {}),
        (forgets_the_place_in_the_data, LOSSES + "data.*", {}),
        (forgets_the_schedule, LOSSES + "model.*", {"scheduler": "linear"}),
        (forgets_how_often_it_averaged, AVERAGES, {"ema_decay": 0.9}),
        (forgets_the_averages, AVERAGES, {"ema_decay": 0.9}),
        (forgets_the_best, "at the end in: callback best",
         {**LATER, "early_stopping_patience": 99}),
        (forgets_when_it_validated, r"at the end in: callback best, .*",
         {**LATER, "val_check_interval": 7}),
        (forgets_its_tokens, "at the end in: counted tokens", {}),
    ],
)  # fmt: skip
def test_verify_resume_rejects_a_run_that_loses_state(
    command, monkeypatch, plant, pattern, changes
):
    plant(monkeypatch)
    code, line = command(**{"kills": 1, "optimizer": "adamw", "lr": 0.01, **changes})
    start = "NOT exact: the resumed run differs from the uninterrupted one "
    assert line.startswith(start)
    assert re.fullmatch(pattern, line.removeprefix(start)), line
    assert code == 1


@pytest.mark.catches("verify_keeps_the_last_loss_of_a_step")
def test_verify_resume_compares_all_losses_of_a_repeated_step(tmp_path):
    rows = [[1, "0x1p0"], [2, "0x2p0"], [2, "0x3p0"]]
    (tmp_path / "notes").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = verify._read_losses(tmp_path / "notes")
    assert losses == {1: {"0x1p0"}, 2: {"0x2p0", "0x3p0"}}


@pytest.mark.slow
def test_verify_resume_starts_new_processes(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", [VERSE] * 3)
    flags = ["--train_path", str(tmp_path / "train.jsonl"), "--tokenizer", "byte", "--seq_len",
             "16", "--model_config", json.dumps(MODEL), "--steps", "4", "--kills", "1"]  # fmt: skip
    assert cli.main(["verify-resume", *flags]) == 0
    assert "exact: 4 losses, all weights and the rest of the state" in capsys.readouterr().out
