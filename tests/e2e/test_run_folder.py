"""Run folders: removed after a failed start; test of the model of an interrupted run."""

import io
import os
import re
import signal

import lightning as L
import pytest
from rich.console import Console

import miniformer
from miniformer import trainer
from miniformer.train_config import TrainConfig
from miniformer.training.run import train
from miniformer.training.setup.run_folder import LOCK_FILE
from tests.kit import VERSE, write_jsonl
from tests.unit.training.setup.test_run_folder import hold


def settings(tmp_path, **changes):
    data = str(write_jsonl(tmp_path / "a.jsonl", [VERSE] * 4))
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}
    fields = {
        "train_path": data, "tokenizer": "byte", "model_config": model, "max_steps": 3,
        "batch_size": 2, "logger": "none", "work_dir": str(tmp_path / "runs"),
        "experiment_name": "run", "precision": "float32",
    }  # fmt: skip
    return TrainConfig(**{**fields, **changes})


class Fails(L.Callback):
    """Raises an error after `after` steps."""

    def __init__(self, error, after=0):
        self.error, self.after = error, after

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.after:
            raise self.error


@pytest.mark.catches("failed_start_leaves_folder")
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_run_folder_is_removed_after_a_failed_start(tmp_path, error):
    for _ in range(2):
        with pytest.raises(type(error)):
            train(settings(tmp_path), callbacks=[Fails(error)])
        assert list((tmp_path / "runs").iterdir()) == []
    assert train(settings(tmp_path)).folder == tmp_path / "runs" / "run"
    assert train(settings(tmp_path)).folder == tmp_path / "runs" / "run-2"


def test_run_folder_is_kept_after_a_step(tmp_path):
    with pytest.raises(RuntimeError, match="later"):
        train(settings(tmp_path), callbacks=[Fails(RuntimeError("later"), after=1)])
    assert (tmp_path / "runs" / "run" / "metrics.jsonl").stat().st_size


def test_run_folder_is_kept_after_a_failed_resume(tmp_path):
    folder = train(settings(tmp_path)).folder
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(RuntimeError, match="broken"):
        train(
            TrainConfig(resume=str(folder), max_steps=5),
            callbacks=[Fails(RuntimeError("broken"), after=3)],
        )
    assert (folder / "last" / "model.safetensors").exists()


def test_run_folder_is_locked_while_it_is_trained_in(tmp_path, capsys):
    folder = train(settings(tmp_path)).folder
    assert not (folder / LOCK_FILE).exists()
    process, line = hold(folder)
    assert line == "locked"
    assert trainer.main(["--resume", str(folder), "--max_steps", "5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"miniformer: error: {folder}: the process 1234 on another-machine is")
    assert len(error.splitlines()) == 1
    process.communicate()
    before = [(folder / LOCK_FILE).exists()]

    class Holds(L.Callback):
        def on_train_batch_end(self, *args):
            process, _ = hold(folder)
            process.communicate()
            before.append(process.returncode)

    train(TrainConfig(resume=str(folder), max_steps=4), callbacks=[Holds()])
    assert before == [True, 1]


class Interrupts(L.Callback):
    """Interrupts after `after` steps, with SIGTERM, which background jobs do not ignore."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.catches("resumed_run_exceeds_its_limit")
def test_stopped_run_names_the_command_that_tests_its_model(tmp_path, capsys):
    data = str(tmp_path / "a.jsonl")
    shown = io.StringIO()
    config = settings(tmp_path, max_steps=20, val_path=data, test_path=data, val_check_interval=2)
    stopped = train(config, console=Console(file=shown, soft_wrap=True), callbacks=[Interrupts(4)])
    assert stopped.interrupted == signal.SIGTERM
    assert "test_loss" not in stopped.metrics
    (arguments,) = re.findall(r"test_path was not evaluated.* train (.*)", shown.getvalue())
    capsys.readouterr()
    assert trainer.main(arguments.split()) == 0
    (loss,) = re.findall(r"^test loss ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    expected = miniformer.load(stopped.folder / "best").perplexity(data)["loss"]
    assert float(loss) == pytest.approx(expected, abs=0.02)  # the windows differ
    lines = (stopped.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in lines if "train_loss" in line]
    assert len(steps) == int(arguments.split()[-1]), "no step was added"
