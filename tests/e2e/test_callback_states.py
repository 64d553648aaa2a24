"""Callbacks that a user gives are part of a run: their states outlive a kill, on each device."""

import os
import signal
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from miniformer import TrainConfig
from miniformer.config import UserError
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.run import train
from tests.kit import VERSE, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "dropout": 0.1}
WORDS = VERSE.split()


class Witness(L.Callback):
    """A callback with state of all types that depends on every batch and on random numbers."""

    def __init__(self, folder, kill=None):
        self.folder, self.kill = Path(folder), kill
        self.state = {
            "batches": 0,
            "steps": {},  # keys are not strings
            "sum": torch.zeros(2, dtype=torch.float64),
            "seen": torch.zeros(0, dtype=torch.bool),
            "array": np.zeros(1, dtype=np.int64),
            "number": np.float32(0.0),
            "last": (None, b""),
        }

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state

    def on_train_start(self, trainer, module):
        torch.rand(1)  # a draw in on_train_start has no effect

    def on_train_batch_start(self, trainer, module, batch, index):
        if self.kill == trainer.global_step and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self.state["batches"] += 1

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        state, ids = self.state, batch["input_ids"]
        state["steps"][trainer.global_step] = int(ids.sum())
        state["sum"] += torch.tensor([ids.sum(), torch.initial_seed() % 7])
        state["seen"] = torch.cat((state["seen"], ids.flatten()[:2] > 100))
        state["array"] = state["array"] + ids.numel()
        state["number"] += np.float32(0.1)
        state["last"] = (float(torch.rand(())), bytes(ids.flatten()[:3].tolist()))

    def on_validation_end(self, trainer, module):
        self.state["sum"] *= 0.5

    def on_train_end(self, trainer, module):
        path = self.folder / f"{trainer.global_rank}.txt"
        path.write_text(repr(self.state))


class Other(Witness):
    """A callback with the `state_key` of another one."""

    @property
    def state_key(self):
        return "Witness"

    def on_validation_end(self, trainer, module):
        self.state["sum"] *= 0.25


def config(folder, name, **changes):
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "train.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "seq_len": 16, "batch_size": 2, "lr": 1e-2,
        "max_steps": 9, "val_check_interval": 4, "checkpoint_interval": 3, "logger": "none",
        "precision": "float32", "accumulate_grad_batches": 2, "work_dir": str(folder / "runs"),
        "experiment_name": name, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    write_jsonl(folder / "train.jsonl", [" ".join(WORDS[i % 9 :]) for i in range(4)])
    return folder


def witnesses(folder, kill=None):
    """Two callbacks with one key, one of them as a factory."""
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return [Witness(folder / "first", kill), partial(Other, folder / "second")]


def killed(settings, callbacks):
    """Trains until a process is killed: a child of this one, or a worker of several."""
    if settings.devices > 1:
        with pytest.raises(ChildFailedError):
            train(settings, callbacks=callbacks)
        return
    child = os.fork()
    if child == 0:
        try:
            train(settings, callbacks=callbacks)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.catches("callback_states_are_not_restored", "second_callback_has_the_first_state")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_callback_state_survives_a_kill(folder, devices):
    uninterrupted, interrupted = folder / f"whole-{devices}", folder / f"killed-{devices}"
    train(config(folder, uninterrupted.name, devices=devices), callbacks=witnesses(uninterrupted))
    killed(config(folder, interrupted.name, devices=devices), witnesses(interrupted, kill=7))
    train(
        TrainConfig(resume=str(folder / "runs" / interrupted.name)),
        callbacks=witnesses(interrupted),
    )
    paths = sorted(path.relative_to(uninterrupted) for path in uninterrupted.rglob("*.txt"))
    assert len(paths) == 2 * devices
    for path in paths:
        assert (interrupted / path).read_text() == (uninterrupted / path).read_text(), path


def named(folder, kill=None):
    """The same two callbacks as settings of a run."""
    given = witnesses(folder, kill)
    module = "tests.e2e.test_callback_states"
    first = {"type": f"{module}:Witness", "folder": str(given[0].folder), "kill": kill}
    return [first, {"type": f"{module}:Other", "folder": str(folder / "second")}]


@pytest.mark.catches("named_callbacks_are_not_built")
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_named_callbacks_are_those_that_are_given(folder, devices):
    """In every process, and after a kill."""
    given, interrupted = folder / f"given-{devices}", folder / f"named-{devices}"
    train(config(folder, given.name, devices=devices), callbacks=witnesses(given))
    settings = named(interrupted, kill=7)
    killed(config(folder, interrupted.name, devices=devices, callbacks=settings), [])
    run = str(folder / "runs" / interrupted.name)
    train(TrainConfig(resume=run, callbacks=named(interrupted)))
    paths = sorted(path.relative_to(given) for path in given.rglob("*.txt"))
    assert len(paths) == 2 * devices
    for path in paths:
        assert (interrupted / path).read_text() == (given / path).read_text(), path


@pytest.mark.catches("callback_state_is_taken_in_the_middle_of_a_step")
def test_interrupted_run_keeps_callback_states_of_its_last_step(folder):
    class Count(L.Callback):
        batches, stop = 0, 0

        def state_dict(self):
            return {"batches": self.batches}

        def on_train_batch_start(self, *args):
            self.batches += 1
            if self.batches == self.stop:
                signal.raise_signal(signal.SIGTERM)

    count = Count()
    count.stop = 9  # the first of the two batches of step 5
    train(config(folder, "stopped"), callbacks=[count])
    about = read_checkpoint_metadata(latest_checkpoint(folder / "runs" / "stopped"))
    assert about["step"] == 4
    (states,) = about["callback_states"]
    assert list(states.values()) == [{"batches": 8}]


def test_callback_with_a_state_that_cannot_be_saved_is_refused(folder):
    class Bad(L.Callback):
        def state_dict(self):
            return {"a": [1, {"b": object()}]}

    message = r"callback .*Bad has a state .*\['a'\]\[1\]\['b'\] is of type builtins\.object"
    with pytest.raises(UserError, match=message):
        train(config(folder, "bad"), callbacks=[Bad()])


def test_callback_without_a_saved_state_warns(folder):
    class Count(L.Callback):
        def state_dict(self):
            return {"n": 1}

    train(config(folder, "warned", max_steps=3), callbacks=[Count()])
    resume = TrainConfig(resume=str(folder / "runs" / "warned"), max_steps=4)
    with pytest.warns(UserWarning, match="state of the callback .*Count, which is not among"):
        train(resume)
    resume = TrainConfig(resume=str(folder / "runs" / "warned"), max_steps=5)
    with pytest.warns(UserWarning, match="no state of the callback .*Count; it starts without one"):
        train(resume, callbacks=[Count()])


@pytest.mark.catches("early_stopped_run_learns_on")
def test_run_that_stopped_early_takes_no_step_when_it_is_resumed(folder):
    name = "stopped_early"
    first = train(
        config(folder, name, lr=0.0, scheduler="none", early_stopping_patience=1, max_steps=20)
    )
    assert first.metrics["step"] == 4
    lines = (folder / "runs" / name / "metrics.jsonl").read_text()
    again = train(TrainConfig(resume=str(folder / "runs" / name)))
    assert (folder / "runs" / name / "metrics.jsonl").read_text() == lines
    assert again.metrics["training_tokens"] == first.metrics["training_tokens"]


@pytest.mark.catches("what_is_no_callback_is_left_out")
def test_callback_of_a_wrong_type_is_refused(folder):
    with pytest.raises(UserError, match=r"is no lightning\.Callback"):
        train(config(folder, "none"), callbacks=[dict])
    with pytest.raises(UserError, match=r"<lambda> cannot be copied to the processes"):
        train(config(folder, "none", devices=2), callbacks=[lambda: Witness(folder)])
