"""`resume=auto`: the newest unfinished run with the same settings, or a new one."""

import dataclasses
import io
import json
import os
import re
import signal

import lightning as L
import pytest
from rich.console import Console

import miniformer
from miniformer import TrainConfig, cli
from miniformer.config import ConfigError, UserError
from miniformer.training.resume.config import CHANGEABLE_FIELDS, resume_config
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.resume.verify import state_digests
from miniformer.training.run import train
from tests.kit import ROOT, VERSE, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "dropout": 0.1}


class EndIn(L.Callback):
    """Sends a signal to the process in a batch."""

    def __init__(self, batch, number=signal.SIGKILL):
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer, *args):
        self.batch -= 1
        if self.batch == 0:
            os.kill(os.getpid(), self.number)


def settings(folder, name="run", **changes):
    return {
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "train.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "seq_len": 16, "batch_size": 2, "lr": 1e-2,
        "max_steps": 8, "val_check_interval": 4, "checkpoint_interval": 2, "logger": "none",
        "precision": "float32", "work_dir": str(folder / "runs"), "experiment_name": name,
        "resume": "auto", **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    write_jsonl(folder / "train.jsonl", [VERSE] * 4)
    return folder


def run(config, *callbacks):
    """The result and the printed text of a run."""
    output = io.StringIO()
    result = train(
        TrainConfig(**config), callbacks=callbacks, console=Console(file=output, width=300)
    )
    return result, output.getvalue()


def kill(config, batch=6):
    """A run that is killed."""
    child = os.fork()
    if child == 0:
        try:
            run(config, EndIn(batch))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def last_step(folder):
    return read_checkpoint_metadata(latest_checkpoint(folder))["step"]


@pytest.mark.catches("complete_run_is_resumed", "auto_always_starts_anew")
def test_auto_resumes_a_killed_run_once(data):
    kill(settings(data))
    first = data / "runs" / "run"
    assert last_step(first) == 4
    result, output = run(settings(data))
    assert result.folder == first
    assert f"resume auto: {first} is resumed from step 4\n" in output
    complete, output = run(settings(data))
    assert complete.folder == data / "runs" / "run-2"
    assert f"resume auto: a new run starts: {data}/runs has no unfinished run run\n" in output
    assert state_digests(first) == state_digests(complete.folder)


@pytest.mark.catches("auto_resumes_another_run")
@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"lr": 0.02}, "lr was 0.01, is 0.02"),
        ({"batch_size": None, "weight_decay": 0.0}, "batch_size was 2, is null; weight_decay was"),
        ({"ema_decay": 0.9}, "ema_decay was null, is 0.9"),
        ({"model_config": {**MODEL, "dropout": 0.0}}, 'model_config was {"d_model": 16, '),
    ],
)
def test_auto_starts_a_new_run_for_other_settings(data, changes, difference):
    name = f"other-{min(changes)}"
    kill(settings(data, name))
    with pytest.MonkeyPatch.context() as patched:  # the decision is printed before training
        patched.setattr("miniformer.training.run._train", lambda config, *a, **k: config)
        config, output = run(settings(data, name, **changes))
    assert config.resume is None
    assert f"a new run starts: {data}/runs/{name} is another run: " in output
    assert difference in output


def test_auto_resumes_with_a_changed_budget_and_device_settings(data):
    kill(settings(data, "longer"))
    result, output = run(settings(data, "longer", max_steps=10, threads=1, optimizer="muon"))
    assert "is resumed from step 4; max_steps was 8, is 10; threads was null, is 1\n" in output
    assert last_step(result.folder) == 10


def test_auto_resumes_an_interrupted_run_and_the_newest_one(data):
    for _ in range(2):
        result, _ = run(settings(data, "twice", resume=None), EndIn(4, signal.SIGTERM))
        assert result.interrupted == signal.SIGTERM
    run(settings(data, "twice-as-long", resume=None), EndIn(4, signal.SIGTERM))
    result, _ = run(settings(data, "twice"))
    assert result.folder == data / "runs" / "twice-2"
    result, _ = run(settings(data, "twice"))
    assert result.folder == data / "runs" / "twice"


@pytest.mark.catches("auto_reads_the_newest_run_alone")
def test_auto_passes_over_unfinished_runs_with_other_settings(data):
    for seed in (0, 1):
        kill(settings(data, "seeds", seed=seed))
    newest = data / "runs" / "seeds-2"
    assert (newest / "given_settings.json").exists()
    result, output = run(settings(data, "seeds", seed=0))
    assert result.folder == data / "runs" / "seeds"
    assert "seeds is resumed from step 4\n" in output
    (newest / "train_config.json").unlink()  # a run folder that is half removed
    _, output = run(settings(data, "seeds", seed=1))
    assert "runs has no unfinished run seeds\n" in output


def test_auto_resumes_a_complete_run_that_was_extended_and_killed(data):
    folder = run(settings(data, "extended", max_steps=2))[0].folder
    extended = {"resume": str(folder), "max_steps": 8}
    kill(extended, batch=4)
    result, _ = run(settings(data, "extended"))
    assert result.folder == folder
    assert last_step(folder) == 8


def test_auto_of_a_run_without_a_checkpoint_starts_anew(data):
    kill(settings(data, "early"), batch=1)
    assert (data / "runs" / "early" / "given_settings.json").exists()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("miniformer.training.run._train", lambda config, *a, **k: config)
        assert run(settings(data, "early"))[0].resume is None


def test_auto_on_the_command_line_and_in_python(data, monkeypatch, capsys):
    kill(settings(data, "entry"))
    monkeypatch.setattr("miniformer.training.run._train", lambda config, *a, **k: config)
    given = settings(data, "entry")
    config = miniformer.train(**given, quiet=True)
    assert config.resume == str(data / "runs" / "entry")
    given["model_config"] = json.dumps(MODEL)
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    capsys.readouterr()
    before = sorted(path for path in data.rglob("*"))
    assert cli.main(["train", *flags, "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "miniformer" in output.splitlines()[0]
    assert "training for language modeling" in output.splitlines()[0]
    assert "is resumed from step 4" in output.replace("\n", " ")
    assert sorted(path for path in data.rglob("*")) == before


def test_auto_with_settings_that_do_not_fit_is_a_user_error(data):
    with pytest.raises(ConfigError, match="train_path is missing"):
        TrainConfig(resume="auto")
    with pytest.raises(UserError, match="resume=auto is for one run; name the folder of the folds"):
        miniformer.train(**settings(data, "folds", val_path=None, folds=2), quiet=True)
    with pytest.raises(ConfigError, match=r"find_lr would override lr=0\.01"):
        run(settings(data, "lr", find_lr=True))


OTHER_VALUES = {str: "other", int: 77, float: 0.77, bool: True, dict: {"a": 1}, list: ["other"]}


@pytest.mark.catches("any_setting_may_change_at_resuming")
def test_resumed_run_refuses_all_but_the_documented_changes(data):
    """Each refusal names the field, its stored value and the given one."""
    changes = {"max_steps": 1, "val_path": None, "val_share": 0.0, "val_check_interval": None}
    folder = run(settings(data, "fixed", resume=None, **changes))[0].folder
    saved = resume_config(folder, {})
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    assert CHANGEABLE_FIELDS.keys() < {*fields}
    assert CHANGEABLE_FIELDS.keys().isdisjoint({"seed", "task", "batch_size", "optimizer"})
    for name in fields:
        stored = getattr(saved, name)
        changed = OTHER_VALUES[type(stored)] if stored is not None else "other"
        changed = not stored if isinstance(stored, bool) else changed
        if name in CHANGEABLE_FIELDS or name == "resume":
            continue
        message = f"{name} is {stored!r} in {folder}, not {changed!r}; leave it out, or start a new"
        with pytest.raises(UserError, match=re.escape(message)):
            resume_config(folder, {name: changed})
        resume_config(folder, {name: stored})


def test_documented_changes_of_a_resumed_run_are_those_of_the_code():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (named|named and auto) \| (.*) \|$", text, re.MULTILINE))
    for title, value in (("named", "named"), ("named and auto", "auto")):
        documented = re.findall(r"`(\w+)`", rows[title])
        assert sorted(documented) == sorted(k for k, v in CHANGEABLE_FIELDS.items() if v == value)
