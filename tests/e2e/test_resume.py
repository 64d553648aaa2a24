"""A run that is killed, interrupted or out of disk space resumes bit-exactly."""

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import lightning as L
import pytest
import torch
from rich.console import Console

import miniformer
from miniformer import TrainConfig, cli
from miniformer.checkpoint.directory import save_directory
from miniformer.config import GenerationConfig, UserError
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.resume.config import resume_config
from miniformer.training.resume.storage import (
    latest_checkpoint,
    load_checkpoint_tensors,
    read_checkpoint_metadata,
    write_checkpoint,
)
from miniformer.training.resume.verify import weights_digest
from miniformer.training.run import train
from miniformer.training.setup.prepare import prepare
from miniformer.training.setup.pretraining import pretrain_config
from tests.kit import VERSE, tiny_model, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "dropout": 0.2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tokens = VERSE.split()
    write_jsonl(folder / "train.jsonl", [" ".join(tokens[i % 7 :]) for i in range(20)])
    write_jsonl(folder / "val.jsonl", [VERSE])
    return folder


def config(data, work_dir, **changes):
    return TrainConfig(**{
        "train_path": str(data / "train.jsonl"), "val_path": str(data / "val.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "seq_len": 16, "batch_size": 6, "lr": 1e-2,
        "max_steps": 40, "val_check_interval": 8, "checkpoint_interval": 3, "logger": "none",
        "accumulate_grad_batches": 2, "ema_decay": 0.9, "average_checkpoints": 2,
        "work_dir": str(work_dir), "experiment_name": "run", **changes,
    })  # fmt: skip


class Kill(L.Callback):
    """Kills the process in a batch."""

    def __init__(self, batch):
        self.batch, self.seen = batch, 0

    def on_train_batch_start(self, *args):
        self.seen += 1
        if self.seen == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(work):
    """Runs a function in a child process; returns how the child ended."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def weights(directory):
    return weights_digest(miniformer.load(directory).model.state_dict())


def without_time(path):
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        names = ("seconds", "tokens_per_second", "waiting", "mfu", "memory_mb")
        rows.append({name: value for name, value in row.items() if name not in names})
    return rows


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """A run without interruption."""
    work_dir = tmp_path_factory.mktemp("whole")
    train(config(data, work_dir))
    return work_dir / "run"


def test_resume_after_twenty_kills_is_bit_exact(data, uninterrupted, tmp_path):
    rng, run, kills = random.Random(0), tmp_path / "run", 0
    for _ in range(20):
        run_config = (
            config(data, tmp_path) if latest_checkpoint(run) is None else resume_config(run, {})
        )
        if latest_checkpoint(run) is None and run.exists():
            run_config = config(data, tmp_path, experiment_name="run")
            for path in sorted(run.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            run.rmdir()
        kill = Kill(rng.randint(3, 8))
        code = in_child(
            lambda run_config=run_config, kill=kill: train(run_config, callbacks=[kill])
        )
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    if kills == 20:
        assert in_child(lambda: train(resume_config(run, {}))) == 0
    assert kills == 20
    for name in ("best", "last"):
        assert weights(run / name) == weights(uninterrupted / name)
    assert without_time(run / "metrics.jsonl") == without_time(uninterrupted / "metrics.jsonl")
    assert (run / "gradients.jsonl").read_text() == (uninterrupted / "gradients.jsonl").read_text()
    assert (run / "samples.jsonl").read_text() == (uninterrupted / "samples.jsonl").read_text()


def test_checkpoint_is_readable_after_kills_while_it_is_written(tmp_path):
    rng = random.Random(1)

    def write():
        step = (
            0
            if (path := latest_checkpoint(tmp_path)) is None
            else read_checkpoint_metadata(path)["step"]
        )
        while True:
            step += 1
            tensors = {str(i): torch.full((200, 200), float(step)) for i in range(8)}
            write_checkpoint(tmp_path, step, tensors, {"step": step, "more": "x" * 50_000})

    for number in range(20):
        child = os.fork()
        if child == 0:
            write()
        while latest_checkpoint(tmp_path) is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        path = latest_checkpoint(tmp_path)
        tensors = {str(i): torch.zeros(200, 200) for i in range(8)}
        load_checkpoint_tensors(path, tensors)
        step = read_checkpoint_metadata(path)["step"]
        assert all((tensor == step).all() for tensor in tensors.values()), number


def test_model_is_loadable_after_kills_while_it_is_replaced(tmp_path):
    rng, directory = random.Random(2), tmp_path / "best"
    model = tiny_model()

    def write():
        for step in range(1_000_000):
            with torch.no_grad():
                model.embedding.weight.fill_(step)
            save_directory(
                directory, model=model, tokenizer=None, task={"task": "embedding"},
                generation=GenerationConfig(), model_card="",
            )  # fmt: skip

    for _ in range(20):
        child = os.fork()
        if child == 0:
            write()
        while not directory.exists():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        weight = miniformer.Transformer.from_pretrained(directory).embedding.weight
        assert (weight == weight[0, 0]).all()


@pytest.mark.catches("replaced_model_is_lost")
def test_model_is_loaded_after_an_interrupted_replacement(tmp_path):
    tiny_model().save_pretrained(tmp_path / "best.old")
    (tmp_path / "best.part").mkdir()
    assert miniformer.Transformer.from_pretrained(tmp_path / "best").config.d_model == 16


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_keeps_the_earlier_checkpoint(data, small_disk, capsys):
    """The disk has room for one checkpoint, not for two."""
    larger = {**MODEL, "d_model": 48}
    run = config(data, small_disk, model_config=larger, ema_decay=None, average_checkpoints=None,
                 val_path=None, val_share=0, val_check_interval=None, max_steps=400)  # fmt: skip
    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
             for name, value in run.non_default_fields().items()]  # fmt: skip
    filler = small_disk / "filler"

    class Fill(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 5:
                with filler.open("wb") as file:
                    try:
                        while True:
                            file.write(b"x" * 1024)
                            file.flush()
                    except OSError:
                        pass

    with pytest.raises(UserError, match="No space left"):
        train(run, callbacks=[Fill()])
    state = latest_checkpoint(small_disk / "run")
    assert read_checkpoint_metadata(state)["step"] == 3
    # The command line prints one message; with free space the run resumes.
    assert cli.main(["train", *flags]) == 2
    assert "No space left" in capsys.readouterr().err
    filler.unlink()
    assert cli.main(["train", "--resume", str(small_disk / "run"), "--max_steps", "6"]) == 0


def test_interrupt_between_batches_of_a_step_loses_no_step(data, tmp_path):
    class Stop(L.Callback):
        step = None

        def on_train_batch_start(self, trainer, module, *args):
            if self.step is None and trainer.global_step >= 10 and module.between_steps:
                self.step = trainer.global_step
                signal.raise_signal(signal.SIGTERM)

    plain = {"val_path": None, "val_share": 0, "val_check_interval": None,
             "average_checkpoints": None}  # fmt: skip
    train(config(data, tmp_path, experiment_name="whole", **plain))
    stop = Stop()
    stopped = train(config(data, tmp_path, **plain), callbacks=[stop])
    assert stopped.interrupted == signal.SIGTERM
    assert (
        read_checkpoint_metadata(latest_checkpoint(tmp_path / "run"))["step"]
        == stop.step
        == stopped.metrics["step"]
    )
    done = train(TrainConfig(resume=str(tmp_path / "run")))
    assert done.metrics["step"] == 40
    assert weights(tmp_path / "run" / "last") == weights(tmp_path / "whole" / "last")


@pytest.mark.catches("interruption_comes_before_the_state")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_interrupt_within_a_batch_loses_no_step(data, tmp_path, monkeypatch, accumulated):
    """The current step ends before the run does, and the checkpoint has the weights after it."""
    plain = {"val_path": None, "val_share": 0, "val_check_interval": None,
             "average_checkpoints": None, "accumulate_grad_batches": accumulated}  # fmt: skip
    train(config(data, tmp_path, experiment_name="whole", **plain))
    learn, seen = MiniFormerLitModule.training_step, []

    def stop(module, *args):
        seen.append(None)
        if len(seen) == 20:
            signal.raise_signal(signal.SIGINT)
        return learn(module, *args)

    with monkeypatch.context() as patched:
        patched.setattr(MiniFormerLitModule, "training_step", stop)
        stopped = train(config(data, tmp_path, **plain))
    assert (
        stopped.metrics["step"]
        == read_checkpoint_metadata(latest_checkpoint(tmp_path / "run"))["step"]
    )
    assert len(seen) == stopped.metrics["step"] * accumulated == 20
    train(TrainConfig(resume=str(tmp_path / "run")))
    assert weights(tmp_path / "run" / "last") == weights(tmp_path / "whole" / "last")


def test_interrupt_in_validation_repeats_it(data, uninterrupted, tmp_path):
    class Stop(L.Callback):
        def on_validation_batch_start(self, trainer, *args):
            if trainer.global_step == 16:
                signal.raise_signal(signal.SIGINT)

    train(config(data, tmp_path), callbacks=[Stop()])
    train(TrainConfig(resume=str(tmp_path / "run")))
    for name in ("best", "last"):
        assert weights(tmp_path / "run" / name) == weights(uninterrupted / name)
    ours, theirs = (
        without_time(folder / "metrics.jsonl") for folder in (tmp_path / "run", uninterrupted)
    )
    assert ours == theirs


def test_early_stopping_is_resumed(data, tmp_path):
    """Two validations without improvement end the run, also with a kill between them."""
    stops = {"lr": 0.0, "early_stopping_patience": 2, "val_check_interval": 2, "max_steps": 40,
             "ema_decay": None, "average_checkpoints": None}  # fmt: skip
    code = in_child(lambda: train(config(data, tmp_path, **stops), callbacks=[Kill(10)]))
    assert code == -signal.SIGKILL
    train(TrainConfig(resume=str(tmp_path / "run")))
    rows = without_time(tmp_path / "run" / "metrics.jsonl")
    assert max(row["step"] for row in rows if "val_loss" in row) == 8  # with the cooldown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 3}, "batch_size is 6 in .*run, not 3; leave it out"),
        ({"seed": 5}, "seed is 0 in"),
    ],
)
def test_resume_with_changed_fixed_fields_is_refused(uninterrupted, change, message):
    with pytest.raises(UserError, match=message):
        resume_config(uninterrupted, change)


def test_resume_of_a_folder_without_a_run_is_refused(tmp_path, uninterrupted, capsys):
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert "is not a run folder: it has no train_config.json" in capsys.readouterr().err
    (tmp_path / "train_config.json").write_text((uninterrupted / "train_config.json").read_text())
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert "has no checkpoint (checkpoints/step-...)" in capsys.readouterr().err
    shutil.copytree(uninterrupted, tmp_path / "run")
    (latest_checkpoint(tmp_path / "run") / "state.json").write_text("{")
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "state.json: not a readable checkpoint" in capsys.readouterr().err


@pytest.mark.catches("refused_resume_changes_the_run")
def test_resume_with_changed_data_is_refused_and_leaves_the_run_as_it_is(data, tmp_path):
    train(config(data, tmp_path, max_steps=4, val_path=None, val_check_interval=None,
                 average_checkpoints=None))  # fmt: skip
    changed = write_jsonl(tmp_path / "other.jsonl", [VERSE])
    saved = (tmp_path / "run" / "train_config.json").read_bytes()
    with pytest.raises(
        UserError,
        match=r"the data of .*/run has changed: it had [0-9,]+ records, [0-9,]+ bytes, and has ",
    ):
        train(resume_config(tmp_path / "run", {"train_path": str(changed), "max_steps": 8}))
    assert (tmp_path / "run" / "train_config.json").read_bytes() == saved


@pytest.mark.catches("a_longer_run_has_no_rows_until_its_end")
def test_finished_run_can_be_extended(data, tmp_path):
    """Rows and validations continue as in an uninterrupted run with a constant learning rate."""
    short = {"max_steps": 10, "scheduler": "none", "val_check_interval": None}
    train(config(data, tmp_path, **short))
    *before, mean = without_time(tmp_path / "run" / "metrics.jsonl")
    assert (
        mean["step"] == before[-1]["step"] == 10
    )  # the mean of the short run is not one of the long run
    done = train(TrainConfig(resume=str(tmp_path / "run"), max_steps=20))
    train(config(data, tmp_path, experiment_name="whole", **{**short, "max_steps": 20}))
    longer, reference = (without_time(tmp_path / n / "metrics.jsonl") for n in ("run", "whole"))
    assert longer[: len(before)] == before
    rows = longer[len(before) :]
    assert [row["step"] for row in rows if "train_loss" in row] == list(range(11, 21))
    validated = [row["step"] for row in rows if "val_loss" in row]
    assert validated == [12, 14, 16, 18, 20, 20], "ten validations of the long run, and the mean"
    losses = {row["step"]: row["train_loss"] for row in reference if "train_loss" in row}
    assert {row["step"]: row["train_loss"] for row in longer if "train_loss" in row} == losses
    assert done.metrics["training_tokens"] == reference[-1]["tokens"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    tokens = VERSE.split()
    for name in ("train", "val"):
        rows = [{"input": " ".join(tokens[i % 9 :][:6]), "label": i % 2} for i in range(24)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def warm_config(labelled, work_dir, **changes):
    return config(labelled, work_dir, **{
        "task": "classification", "accumulate_grad_batches": 1, "max_steps": 12, "seq_len": 32,
        "pretrain": {"max_steps": 12, "checkpoint_interval": 3}, **changes,
    })  # fmt: skip


@pytest.mark.catches("pretraining_leaves_no_weights")
def test_pretrained_weights_start_the_run(labelled, tmp_path, capsys):
    class Look(L.Callback):
        def on_train_start(self, trainer, module):
            self.weights = {k: v.clone() for k, v in module.model.state_dict().items()}

    look = Look()
    result = train(warm_config(labelled, tmp_path), callbacks=[look])
    warm = miniformer.load(tmp_path / "run" / "pretrain" / "best")
    assert warm.task.name == "masked_lm"
    assert warm.model.config.output_dim is None
    for name, tensor in warm.model.state_dict().items():
        assert torch.equal(look.weights[name], tensor), name
    assert set(look.weights) - set(warm.model.state_dict()) == {"head.weight", "head.bias"}
    assert result.folder == tmp_path / "run"
    assert "val_accuracy" in result.metrics
    settings = TrainConfig.from_file(tmp_path / "run" / "train_config.json")
    assert settings.lr == 1e-2
    assert (tmp_path / "run" / "pretrain" / "report.html").exists()
    output = capsys.readouterr().out
    first, pretraining = output.split("\nsettings of the run and its pretrain:\n")
    (given,) = first.split("\nsettings given:\n")[1:]
    assert "  task: classification\n" in given.split("\nsettings resolved:\n")[0]
    assert "  task: masked_lm\n" in pretraining.split("\nsettings resolved:\n")[0]
    assert "settings given" not in pretraining


# A setting of data, batches or hardware, and a value that is not its default.
PRETRAIN_SHARES = {
    "batch_size": 3, "batch_tokens": 96, "seq_len": 24, "activation_checkpointing": "full",
    "precision": "bf16", "compile": True, "accelerator": "cpu", "devices": 2, "num_nodes": 3,
    "strategy": "ddp", "num_workers": 1, "seed": 5, "deterministic": True, "logger": "csv",
}  # fmt: skip


@pytest.mark.catches("pretraining_ignores_batch_tokens")
def test_pretraining_has_the_data_batches_and_hardware_of_its_run(labelled, tmp_path):
    plain = config(labelled, tmp_path, task="classification", pretrain={"max_steps": 7})
    run = prepare(plain, Console(file=io.StringIO()))
    defaults = TrainConfig(train_path="a.jsonl")
    for name, value in PRETRAIN_SHARES.items():
        assert value != getattr(defaults, name), name
    run.config = dataclasses.replace(run.config, **PRETRAIN_SHARES)
    result = pretrain_config(run).to_dict()
    shared = {**PRETRAIN_SHARES, "train_path": plain.train_path, "val_path": plain.val_path}
    assert {name: result[name] for name in shared} == shared
    own = {"task", "task_config", "model_config", "experiment_name", "max_steps"}
    rest = result.keys() - shared.keys() - own
    assert {name: result[name] for name in rest} == {name: getattr(defaults, name) for name in rest}
    assert result["max_steps"] == 7


@pytest.fixture(scope="module")
def whole_with_warm_start(labelled, tmp_path_factory):
    """A run with pretraining and without interruption."""
    return train(warm_config(labelled, tmp_path_factory.mktemp("warm")))


# Before and after the first checkpoint of pretraining, and before the first one after it.
@pytest.mark.parametrize("step", [2, 8, 14])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_pretraining_is_resumed_after_a_kill(
    labelled, whole_with_warm_start, tmp_path, monkeypatch, capsys, number, step
):
    learn, seen = MiniFormerLitModule.training_step, []

    def stop(module, *args):
        seen.append(None)
        if len(seen) == step:
            os.kill(os.getpid(), number)
        return learn(module, *args)

    def work():
        monkeypatch.setattr(MiniFormerLitModule, "training_step", stop)
        stopped = train(warm_config(labelled, tmp_path))
        assert stopped.interrupted == number
        assert stopped.folder == tmp_path / "run"

    assert in_child(work) == (-number if number == signal.SIGKILL else 0)
    assert (tmp_path / "run" / "last").exists() == (step == 14 and number == signal.SIGTERM)
    saved = latest_checkpoint(tmp_path / "run" / "pretrain") is not None
    assert saved == (step > 2 or number == signal.SIGTERM)
    done = train(TrainConfig(resume=str(tmp_path / "run")))
    metrics = whole_with_warm_start.metrics
    assert {**done.metrics, "seconds": 0} == {**metrics, "seconds": 0}
    went_on = f"resuming from {tmp_path / 'run' / 'pretrain' / 'checkpoints'}"
    again = saved and not (step == 14 and number == signal.SIGTERM)  # then its own states are used
    assert (went_on in capsys.readouterr().out.replace("\n", "")) == again
    for name in ("pretrain/last", "pretrain/best", "last", "best"):
        assert weights(tmp_path / "run" / name) == weights(whole_with_warm_start.folder / name), (
            name
        )


def test_pretraining_is_for_classification_and_regression(data, labelled, tmp_path):
    for changes in ({}, {"model": "seq2seq"}):
        with pytest.raises(UserError, match="pretrain is for classification and regression"):
            train(config(data, tmp_path, pretrain={}, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_step": 3}, r".*unknown field 'max_step' \(did you"),
        ({"task_config": None}, "task_config must be an object, not None"),
        ({"model_config": 3}, "model_config must be an object, not 3"),
        ({"model_config": {"dropout": 0.1, "d_model": 8}}, "model_config may set .*, not d_model"),
        ({"model_size": "tiny"}, "model_size follows from the run; leave it out"),
        ({"tokenizer": "char"}, "tokenizer follows from the run"),
        ({"task_config": {"mask_shares": 0.3}}, ".*unknown field 'mask_shares'"),
    ],
)
def test_pretraining_with_invalid_settings_is_refused(labelled, tmp_path, given, message):
    with pytest.raises(UserError, match=f"pretrain: {message}"):
        train(warm_config(labelled, tmp_path, pretrain=given))
    assert not list(tmp_path.iterdir())


def test_pretraining_on_pairs_has_shared_token_types(labelled, tmp_path):
    for name in ("train", "val"):
        rows = [json.loads(line) for line in (labelled / f"{name}.jsonl").read_text().splitlines()]
        pairs = [{**row, "input": [row["input"], row["input"][:9]]} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    short = {"max_steps": 1, "average_checkpoints": None}
    train(warm_config(tmp_path, tmp_path, **short, pretrain={"max_steps": 1}))
    warm, main = (miniformer.load(tmp_path / "run" / name) for name in ("pretrain/best", "best"))
    assert warm.task.shared_token_types
    assert main.task.shared_token_types
    assert warm.model.config.token_types == main.model.config.token_types == 4


def test_pretraining_has_its_own_settings(labelled, tmp_path):
    given = {"max_steps": 1, "task_config": {"mask_share": 0.3}, "model_config": {"dropout": 0.4}}
    short = {"max_steps": 1, "average_checkpoints": None}
    train(warm_config(labelled, tmp_path, **short, pretrain=given))
    warm = miniformer.load(tmp_path / "run" / "pretrain" / "best")
    assert (warm.task.mask_share, warm.model.config.dropout) == (0.3, 0.4)
    main = miniformer.load(tmp_path / "run" / "best")
    assert main.model.config.dropout != 0.4
