"""Callbacks by name, and callbacks that stop a run: the reason is shown and survives a kill."""

import io
import os
import signal

import lightning as L
import pytest
from rich.console import Console

from miniformer import TrainConfig, cli, registry, stop_run
from miniformer.config import UserError
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.resume.verify import state_digests
from miniformer.training.run import train
from tests.kit import VERSE, write_jsonl

REASON = "val_loss is below 100 nats"
PATH = "tests.e2e.test_stop_run"


class StopAt(L.Callback):
    """Requests a stop in a validation; of several devices, on one only."""

    def __init__(self, step, reason=REASON, rank=0, kill=False):
        self.step, self.reason, self.rank, self.kill = step, reason, rank, kill

    def on_validation_end(self, trainer, module):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            stop_run(trainer, self.reason)

    def on_train_end(self, trainer, module):
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)


class NoCallback:
    calls = 0

    def __init__(self):
        NoCallback.calls += 1


def config(folder, name, **changes):
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "train.jsonl"),
        "tokenizer": "byte", "seq_len": 16, "batch_size": 2, "lr": 1e-2, "max_steps": 9,
        "model_config": {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32},
        "val_check_interval": 2, "logger": "none", "precision": "float32",
        "work_dir": str(folder / "runs"), "experiment_name": name, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stops")
    write_jsonl(folder / "train.jsonl", [VERSE] * 4)
    return folder


@pytest.fixture(scope="module")
def stopped(folder):
    """The result, the output and the folder of a run that a callback stops after step 4 of 9."""
    output = io.StringIO()
    setting = {"type": f"{PATH}:StopAt", "step": 4}
    result = train(config(folder, "stopped", callbacks=[setting]), console=Console(file=output))
    return result, output.getvalue(), result.folder


@pytest.mark.catches("report_does_not_name_the_reason_of_a_stop")
def test_stopped_run_shows_its_reason(stopped):
    result, output, folder = stopped
    assert result.metrics["step"] <= 4
    assert read_checkpoint_metadata(latest_checkpoint(folder))["step"] == 4
    assert (result.stop_reason, result.interrupted) == (REASON, None)
    assert f"stopped at step 4: {REASON}" in output
    assert f"A callback stopped the run at step 4: {REASON}" in (folder / "report.html").read_text()
    assert result.to_json()["stop_reason"] == REASON


@pytest.mark.catches("stopped_run_learns_on")
def test_stopped_run_stays_stopped_when_it_is_resumed(stopped):
    _, _, folder = stopped
    before = (folder / "metrics.jsonl").read_text()
    console = Console(file=io.StringIO(), width=300)
    again = train(TrainConfig(resume=str(folder)), console=console)
    assert again.stop_reason == REASON
    line = f"a callback has stopped the run at step 4: {REASON}; it takes no further step\n"
    assert line in console.file.getvalue()
    assert (folder / "metrics.jsonl").read_text() == before


def test_stopped_run_is_the_same_after_a_kill(folder, stopped):
    child = os.fork()
    if child == 0:
        try:
            train(config(folder, "killed"), callbacks=[StopAt(4, kill=True)])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    result = train(TrainConfig(resume=str(folder / "runs" / "killed")), callbacks=[StopAt(4)])
    assert result.stop_reason == REASON
    digests, expected = state_digests(result.folder), state_digests(stopped[2])
    assert {**digests, "callbacks": ""} == {**expected, "callbacks": ""}


def test_stopped_run_trains_on_without_its_callbacks(folder):
    run = train(config(folder, "goes_on"), callbacks=[StopAt(2)]).folder
    resumed = TrainConfig(resume=str(run))
    with pytest.warns(UserWarning, match="state of the callback StopRequests, which is not among"):
        result = train(resumed)
    assert result.stop_reason is None
    assert read_checkpoint_metadata(latest_checkpoint(run))["step"] == 9


class StopInBatch(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            stop_run(trainer, "three steps are enough")


class SetsShouldStop(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 3


@pytest.mark.parametrize(
    ("callback", "step", "reason"),
    [
        (StopInBatch(), 3, "three steps are enough"),
        (SetsShouldStop(), 3, "a callback has set trainer.should_stop"),
        (
            L.pytorch.callbacks.EarlyStopping("val_loss", stopping_threshold=100.0),
            2,
            "Stopping threshold reached: val_loss",
        ),
    ],
)
def test_run_that_a_callback_stops_in_another_way_has_a_reason(folder, callback, step, reason):
    result = train(config(folder, f"other-{type(callback).__name__}"), callbacks=[callback])
    assert result.stop_reason.startswith(reason)
    assert read_checkpoint_metadata(latest_checkpoint(result.folder))["step"] == step


def test_run_that_ends_at_its_limit_was_not_stopped(folder):
    assert train(config(folder, "whole"), callbacks=[StopAt(99)]).stop_reason is None


@pytest.mark.slow
@pytest.mark.usefixtures("fast_launch")
@pytest.mark.catches("only_rank_0_stops_a_run")
def test_run_on_two_devices_stops_where_one_requests_it(folder):
    setting = {"type": f"{PATH}:StopAt", "step": 4, "rank": 1}
    result = train(config(folder, "two", devices=2, callbacks=[setting]))
    assert result.stop_reason == REASON
    assert read_checkpoint_metadata(latest_checkpoint(result.folder))["step"] == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"type": "stp"}, r"callbacks\[0\]: unknown callback 'stp' \(did you mean 'stop'\?\)"),
        ({"step": 3}, r"callbacks\[0\] must be a name, or an object with a name as type"),
        ({"type": "stop"}, r"callbacks\[0\]: stop needs the option 'step'; its options: step, "),
        ({"type": "stop", "stp": 3}, r"stop has no option 'stp' \(did you mean 'step'\?\)"),
        (f"{PATH}:StopEt", r"'tests.e2e.test_stop_run:StopEt' cannot be imported: AttributeError"),
        ("no_such_module:Stop", r"cannot be imported: ModuleNotFoundError: No module named 'no_"),
        (f"{PATH}:NoCallback", r"test_stop_run:NoCallback is no lightning.Callback"),
        ("os:getcwd", r"os:getcwd is no lightning.Callback: <built-in function getcwd>"),
    ],
)
def test_callback_settings_that_are_wrong_are_user_errors(folder, monkeypatch, setting, message):
    monkeypatch.setitem(registry._registered, "callback", {"stop": StopAt})
    with pytest.raises(UserError, match=message):
        train(config(folder, "wrong", callbacks=[setting]))
    assert not (folder / "runs" / "wrong").exists()
    assert NoCallback.calls == 0


def test_registered_callback_is_a_flag(folder, monkeypatch, capsys):
    monkeypatch.setitem(registry._registered, "callback", {"stop": StopAt})
    monkeypatch.chdir(folder)
    flags = "--max_steps 9 --val_check_interval 2 --logger none --tokenizer byte --seq_len 16"
    model = '{"d_model": 16, "n_heads": 2, "n_layers": 1}'
    flags += " --val_path train.jsonl --precision float32"
    settings = '[{"type": "stop", "step": 2, "reason": "enough"}]'
    argv = ["train", "train.jsonl", *flags.split(), "--model_config", model]
    assert cli.main([*argv, "--callbacks", settings]) == 0
    assert "stopped at step 2: enough" in capsys.readouterr().out
