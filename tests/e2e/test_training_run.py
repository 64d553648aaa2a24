"""Training and use of a model by the command line, from a file to generated text."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from rich.console import Console

import miniformer
from miniformer import TrainConfig, cli, trainer
from miniformer.commands import demo
from miniformer.data.batching.loader import BatchLoader
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.run import train
from miniformer.utils.streams import make_console
from tests.kit import ROOT, VERSE, environment, run_python, write_jsonl
from tests.kit.clock import Clock

MODEL = '{"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64, "dropout": 0.0}'


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "train.jsonl", [VERSE] * 40)
    write_jsonl(folder / "val.jsonl", [VERSE])
    (folder / "train.txt").write_text(VERSE * 40)
    return folder


def flags(files, work_dir, *more, kind="jsonl"):
    return [
        "--train_path", str(files / f"train.{kind}"), "--val_path", str(files / "val.jsonl"),
        "--model_config", MODEL, "--tokenizer", "char", "--seq_len", "32", "--batch_size", "8",
        "--lr", "1e-2", "--max_steps", "200", "--work_dir", str(work_dir), "--logger", "none",
        "--early_stopping_patience", "0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """A finished run: its folder and what the command printed."""
    work_dir = tmp_path_factory.mktemp("runs")
    done = run_python("-m", "miniformer.trainer", *flags(files, work_dir))
    assert done.returncode == 0, done.stderr
    return work_dir / "language_modeling", done


def test_train_lowers_the_loss_and_prints_a_summary(run):
    folder, done = run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = [row["val_loss"] for row in rows if "val_loss" in row]
    assert len(validations) == 12  # one an epoch
    assert validations[-1] < 0.5 * validations[0], "the verse is memorized"
    assert rows[-1]["step"] == 200
    for text in (
        "tokenizer: char",
        "model: ",
        "validation loss",
        "bits per byte",
        "padding 0.0%; waited for data",
        "use it: ",
    ):
        assert text in done.stdout
    assert done.stderr == "", "no warnings or hints of other libraries reach the user"


def test_model_directory_is_complete(run):
    best = run[0] / "best"
    assert {path.name for path in best.iterdir()} == {
        "README.md", "config.json", "data.json", "format_version", "generation_config.json",
        "loss.png", "model.safetensors", "task.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    card = (best / "README.md").read_text()
    assert "validation bits per byte" in card
    assert "![loss](loss.png)" in card
    assert (best / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_model_directory_can_be_moved_and_loaded(run, tmp_path):
    moved = tmp_path / "elsewhere"
    (run[0] / "best").rename(moved)
    try:
        m = miniformer.load(moved)
        assert m.generate("The cat sat", max_new_tokens=16, temperature=0) == " on the mat, and"
        prompts = ["The cat", "Nobody knew why"]
        texts = m.generate(prompts, max_new_tokens=20, temperature=0)
        assert texts == [m.generate(prompt, max_new_tokens=20, temperature=0) for prompt in prompts]
        assert isinstance(m.generate("", max_new_tokens=5), str)
    finally:
        moved.rename(run[0] / "best")


def test_best_and_last_models_are_those_of_their_steps(files, tmp_path):
    """With a rising learning rate the loss rises in the end: best and last differ."""
    config = miniformer.TrainConfig(
        train_path=str(files / "train.jsonl"), val_path=str(files / "val.jsonl"),
        tokenizer="char", model_config=json.loads(MODEL), seq_len=32, batch_size=8, lr=0.3,
        scheduler="none", warmup_steps=60, max_steps=60, val_check_interval=6, logger="none",
        work_dir=str(tmp_path), precision="float32", early_stopping_patience=0,
    )  # fmt: skip
    result = miniformer.train(config)
    folder = tmp_path / "language_modeling"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    best_step = min(losses, key=losses.get)
    assert result.metrics["step"] == best_step < 60
    for name, step in (("best", best_step), ("last", 60)):
        pipeline = miniformer.load(folder / name)
        data = miniformer.MiniFormerDataModule(
            files / "train.jsonl", val_path=files / "val.jsonl", tokenizer=pipeline.tokenizer,
            batch_size=8, seq_len=32,
        )  # fmt: skip
        with torch.no_grad():
            stats = [LanguageModeling().eval_step(pipeline.model, b) for b in data.val_dataloader()]
        loss = LanguageModeling().compute_metrics(stats)["loss"]
        assert loss == pytest.approx(losses[step], rel=1e-4), name


def test_epochs_have_different_orders(files, tmp_path, monkeypatch):
    epochs = []
    original = BatchLoader._global_batches

    def noted(self, epoch, *position):
        if self.seed is not None:
            epochs.append(epoch)
        return original(self, epoch, *position)

    monkeypatch.setattr(BatchLoader, "_global_batches", noted)
    arguments = flags(files, tmp_path, "--max_epochs", "3")
    del arguments[(at := arguments.index("--max_steps")) : at + 2]
    assert trainer.main(arguments) == 0
    assert epochs == [0, 1, 2]


def test_generate_uses_the_sampling_settings_of_the_directory(run, tmp_path, capsys):
    """Flags override only their fields of generation_config.json."""
    best = tmp_path / "best"
    shutil.copytree(run[0] / "best", best)
    settings = json.loads((best / "generation_config.json").read_text())
    assert (settings["temperature"], settings["max_new_tokens"]) == (0.8, 32)  # half of 64
    changed = {**settings, "temperature": 0.0, "max_new_tokens": 8}
    (best / "generation_config.json").write_text(json.dumps(changed))
    assert cli.main(["generate", str(best), "The cat sat"]) == 0
    assert capsys.readouterr().out == "The cat sat on the \n"
    assert cli.main(["generate", str(best), "The cat sat", "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out == "The cat sat on\n"


def test_beam_search_ignores_sampling_settings_of_the_directory(run, capsys):
    """The directory's temperature of 0.8 does not apply to beam search, a given one is refused."""
    best = str(run[0] / "best")
    search = ["--num_beams", "3", "--max_new_tokens", "8"]
    assert cli.main(["generate", best, "The cat sat", *search]) == 0
    assert capsys.readouterr().out == "The cat sat on the \n"
    assert cli.main(["generate", best, "The cat sat", *search, "--temperature", "0.8"]) == 2
    assert "set temperature=0, not 0.8, or num_beams=1" in capsys.readouterr().err


def test_generate_command(run, capsys, monkeypatch):
    best = str(run[0] / "best")
    greedy = ["--temperature", "0", "--max_new_tokens", "8"]
    assert cli.main(["generate", best, "The cat sat", *greedy]) == 0
    assert capsys.readouterr().out == "The cat sat on the \n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Nobody knew why"))
    assert cli.main(["generate", best, "-", "mat, and the dog", *greedy]) == 0
    assert capsys.readouterr().out == "Nobody knew why the bir\nmat, and the dog sat by \n"


def test_second_run_has_a_new_folder(files, tmp_path):
    quick = ("--max_steps", "1")
    assert trainer.main(flags(files, tmp_path, *quick)) == 0
    before = (tmp_path / "language_modeling" / "metrics.jsonl").read_text()
    assert trainer.main(flags(files, tmp_path, *quick)) == 0
    assert (tmp_path / "language_modeling" / "metrics.jsonl").read_text() == before
    assert (tmp_path / "language_modeling-2" / "best").is_dir()


def test_seed_decides_the_weights(files, tmp_path):
    def weights(name, seed):
        more = ("--max_steps", "3", "--experiment_name", name, "--seed", seed)
        assert trainer.main(flags(files, tmp_path, *more)) == 0
        return miniformer.load(tmp_path / name / "last").model.state_dict()

    first, again, different = weights("a", "1"), weights("b", "1"), weights("c", "2")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], different["embedding.weight"])


def test_train_on_plain_text_with_max_time_and_no_validation(files, tmp_path, capsys, monkeypatch):
    """40 seconds and 8 per batch: five steps, and a learning rate that falls with time."""
    Clock().install_per_batch(monkeypatch, 8.0)
    arguments = flags(files, tmp_path, "--max_time", "40s", "--max_steps", "100000",
                      "--scheduler", "linear", "--warmup_steps", "0", kind="txt")  # fmt: skip
    at = arguments.index("--val_path")
    arguments[at : at + 2] = ["--val_share", "0"]
    assert trainer.main(arguments) == 0
    assert "no validation: only the training loss is reported" in capsys.readouterr().out
    folder = tmp_path / "language_modeling"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["seconds"] for row in rows] == [8, 16, 24, 32, 40]
    assert [row["lr"] for row in rows] == pytest.approx([0.008, 0.006, 0.004, 0.002, 0.0])
    assert not (folder / "best").exists()
    task = json.loads((folder / "last" / "task.json").read_text())
    assert task["task"] == "language_modeling"
    assert task["prepend_bos"] is False


def test_yaml_config_is_overridden_by_flags(files, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"train_path: {files / 'train.jsonl'}\ntokenizer: byte\nmax_steps: 5\nlogger: csv\n"
        f"seq_len: 16\nmodel_config:\n  d_model: 16\n  n_heads: 2\n  n_layers: 1\n"
        f"work_dir: {tmp_path}\n"
    )
    assert cli.main(["train", "--config", str(recipe), "--max_steps", "2"]) == 0
    folder = tmp_path / "language_modeling"
    settings = json.loads((folder / "train_config.json").read_text())
    assert settings["max_steps"] == 2
    assert settings["tokenizer"] == "byte"
    assert (folder / "csv").is_dir()


def test_early_stopping(files, tmp_path):
    more = ("--lr", "0", "--early_stopping_patience", "1", "--val_check_interval", "2",
            "--scheduler", "none")  # fmt: skip
    assert trainer.main(flags(files, tmp_path, *more)) == 0
    rows = (tmp_path / "language_modeling" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 4


def test_averaged_weights_are_saved_if_they_are_the_best(files, tmp_path):
    class Seen(L.Callback):
        def __init__(self):
            self.weights, self.losses = [], []

        def on_validation_end(self, trainer, module):
            state = module.model.state_dict()
            self.weights.append({name: weight.clone() for name, weight in state.items()})
            self.losses.append(float(trainer.callback_metrics["val_loss"]))

    seen = Seen()
    arguments = {
        "train_path": str(files / "train.jsonl"), "val_path": str(files / "val.jsonl"),
        "model_config": json.loads(MODEL), "tokenizer": "byte", "logger": "none", "lr": 0.3,
        "optimizer": "adamw", "scheduler": "none", "max_steps": 60, "val_check_interval": 4,
        "seq_len": 16, "average_checkpoints": 3, "work_dir": str(tmp_path),
        "early_stopping_patience": 0,
    }  # fmt: skip
    result = train(TrainConfig.from_dict(arguments), callbacks=[seen])
    *losses, of_mean = seen.losses
    assert of_mean < min(losses)  # at such a rate
    assert result.metrics["val_loss"] == pytest.approx(of_mean)
    best = miniformer.load(result.model).model.state_dict()
    for name, weight in best.items():
        mean = torch.stack([weights[name] for weights in seen.weights[-4:-1]]).mean(0)
        torch.testing.assert_close(weight, mean)


def test_tokenizer_of_an_earlier_run_is_accepted(files, run, tmp_path):
    tokenizer = str(run[0] / "best" / "tokenizer.json")
    assert trainer.main(flags(files, tmp_path, "--tokenizer", tokenizer, "--max_steps", "1")) == 0
    saved = tmp_path / "language_modeling" / "best" / "tokenizer.json"
    assert json.loads(saved.read_text()) == json.loads(
        (run[0] / "best" / "tokenizer.json").read_text()
    )


@pytest.mark.parametrize(
    "more",
    [
        ("--precision", "bf16"),
        ("--accumulate_grad_batches", "3", "--scheduler", "onecycle"),
        ("--num_workers", "1", "--max_epochs", "1"),
        ("--logger", "tensorboard", "--deterministic", "true"),
    ],
)
def test_train_with_other_options(files, tmp_path, more):
    assert trainer.main(flags(files, tmp_path, "--max_steps", "12", *more)) == 0
    rows = [
        json.loads(line)
        for line in (tmp_path / "language_modeling" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < losses[0]
    assert rows[-1]["step"] == 12


@pytest.mark.parametrize("how", ["selective", "full"])
def test_activation_checkpointing_changes_no_loss(files, tmp_path, capsys, how):
    def weights(name, *more):
        arguments = flags(files, tmp_path, "--max_steps", "3", "--experiment_name", name, *more)
        assert trainer.main(arguments) == 0
        return miniformer.load(tmp_path / name / "last").model.state_dict()

    plain = weights("plain")
    capsys.readouterr()
    checkpointed = weights("checkpointed", "--activation_checkpointing", how)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    out = capsys.readouterr().out
    after, before = re.search(
        r"activations of a batch: ([\d.]+) MB, ([\d.]+) MB without", out
    ).groups()
    assert 0 < float(after) < float(before)


def test_terminal_shows_a_progress_bar(files, tmp_path, monkeypatch):
    """A step of 8 x 32 tokens takes a quarter of a second."""
    Clock().install_per_batch(monkeypatch, 0.25)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=150)
    config = miniformer.TrainConfig(
        train_path=str(files / "train.jsonl"), val_path=str(files / "val.jsonl"),
        tokenizer="byte", model_config=json.loads(MODEL), seq_len=32, batch_size=8, max_steps=20,
        logger="none", work_dir=str(tmp_path), val_check_interval=9,
    )  # fmt: skip
    result = miniformer.train(config, console=console)
    assert result.model == tmp_path / "language_modeling" / "best"
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", shown.getvalue())
    bars = re.findall(r"^[━╺╸]+ epoch .*", re.sub(r"\r", "\n", plain), re.MULTILINE)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    loss = next(row["train_loss"] for row in rows if row["step"] == 20)
    val = next(row["val_loss"] for row in rows if row["step"] == 20 and "val_loss" in row)
    last = re.sub(r"^\W+", "", bars[-1])
    assert last == (
        f"epoch 2  step 20/20  loss {loss:.3f}  val loss {val:.3f}  elapsed 0:05  1,024 tokens/s"
    )


TRAIN_WITH_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
from miniformer import trainer
sys.exit(trainer.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_in_training_saves_a_usable_model(files, tmp_path, number, code):
    arguments = flags(files, tmp_path, "--max_steps", "1000000", "--val_check_interval", "500000")
    child = subprocess.Popen(
        [sys.executable, "-c", TRAIN_WITH_CTRL_C, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    metrics = tmp_path / "language_modeling" / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.read_text()):
            assert child.poll() is None, child.communicate()
            time.sleep(0.1)
        child.send_signal(number)
        out, err = child.communicate()
    finally:
        child.kill()
    assert child.returncode == code, err
    assert "Traceback" not in err
    last = tmp_path / "language_modeling" / "last"
    assert f"model: {last}" in out
    assert "training interrupted; the model so far is saved" in out
    assert isinstance(miniformer.load(last).generate("The", max_new_tokens=3), str)


KILL_IN_SAVE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
from miniformer import trainer
from miniformer.training.report import artifacts as run
save = run.save_directory
def killed(directory, **options):
    if directory.name == "best":
        signal.raise_signal(signal.{signal})
        {more}
    save(directory, **options)
run.save_directory = killed
sys.exit(trainer.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signal_while_a_model_is_saved_loses_nothing(files, tmp_path, name, code):
    script = KILL_IN_SAVE.format(signal=name, more="")
    done = run_python("-c", script, *flags(files, tmp_path))
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    folder = tmp_path / "language_modeling"
    assert "training interrupted" in done.stdout
    for name in ("best", "last"):
        assert isinstance(miniformer.load(folder / name).generate("a", max_new_tokens=2), str)


def test_second_ctrl_c_exits_immediately(files, tmp_path):
    script = KILL_IN_SAVE.format(signal="SIGINT", more="signal.raise_signal(signal.SIGINT)")
    done = run_python("-c", script, *flags(files, tmp_path))
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip().endswith("miniformer: interrupted; nothing more was written")
    assert "Traceback" not in done.stderr


def test_error_after_a_signal_is_printed(files, tmp_path):
    script = KILL_IN_SAVE.format(signal="SIGTERM", more="raise OSError(28, 'No space left')")
    done = run_python("-c", script, *flags(files, tmp_path))
    assert "No space left" in done.stderr
    assert "saved" not in done.stdout


def test_nan_loss_ends_the_run_with_a_message(files, tmp_path, capsys):
    assert trainer.main(flags(files, tmp_path, "--lr", "1e30", "--warmup_steps", "0")) == 2
    assert "the training loss is nan at step" in capsys.readouterr().err


def test_demo_runs_to_its_end(tmp_path, capsys, monkeypatch):
    # One package of the standard library suffices for thirty steps, with a quarter for validation.
    Clock().install_per_batch(monkeypatch, 0.1)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(stdlib / "asyncio")})
    monkeypatch.setattr("miniformer.commands.demo._VAL_MODULE_INTERVAL", 4)
    for _ in range(2):
        assert cli.main(["demo", "--minutes", "0.05", "--work_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "wrote" in out
    assert "reused" in out
    assert "python -m miniformer.trainer" in out
    for text in ("single bytes", "xz -9", "this model", "continuation of 'def '"):
        assert text in out
    assert (tmp_path / "demo-2" / "best" / "loss.png").exists()
    train, val = (
        {
            json.loads(line)["file"]
            for line in (tmp_path / "demo-data" / name).read_text().splitlines()
        }
        for name in ("train.jsonl", "val.jsonl")
    )
    assert train
    assert val
    assert not train & val


@pytest.mark.catches("demo_overwrites_other_files")
def test_demo_keeps_other_files(tmp_path, capsys):
    texts = {"train.jsonl": "a\n", "val.jsonl": "b\n"}
    (tmp_path / "demo-data").mkdir()
    own = write_jsonl(tmp_path / "demo-data" / "val.jsonl", [VERSE])
    before = own.read_text()
    for _ in range(2):
        folder = demo._write_data(texts, tmp_path, make_console())
        assert folder == tmp_path / "demo-data-2"
        assert {path.name: path.read_text() for path in folder.iterdir()} == texts
    assert own.read_text() == before
    assert not (tmp_path / "demo-data" / "train.jsonl").exists()
    out = capsys.readouterr().out
    assert f"{tmp_path / 'demo-data'} has other files, which are not changed" in out
    assert f"wrote {folder / 'train.jsonl'}" in out
    assert f"reused {folder / 'train.jsonl'}" in out


def test_printed_commands_can_be_pasted(run, tmp_path, files, capsys):
    """Paths may have special characters; the commands name the Python executable."""
    work_dir = tmp_path / "my $HOME 'runs'"
    assert trainer.main(flags(files, work_dir, "--max_steps", "1")) == 0
    (line,) = re.findall(r"use it: (.*)", capsys.readouterr().out)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("your prompt")
    config = miniformer.TrainConfig(train_path=str(files / "it's.jsonl"), model_config={"d_ff": 3})
    command = demo._training_command(config).replace(
        "-m miniformer.trainer", "-c 'import sys; print(sys.argv[1:])'"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment())
    assert (
        done.stdout
        == str(["--train_path", str(files / "it's.jsonl"), "--model_config", '{"d_ff": 3}']) + "\n"
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_package_build_contains_the_type_marker(tmp_path):
    import zipfile

    done = run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "miniformer/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]
