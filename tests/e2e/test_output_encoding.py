"""All commands with a terminal or pipe that cannot encode some characters."""

import io
import json
import subprocess
import sys

import pytest

from miniformer import cli
from miniformer.train_config import TrainConfig
from miniformer.training.run import train
from tests.kit import environment

TEXTS = ["caf\u00e9 \u65e5\u672c \U0001f44d ", "\u0436\u0438\u0437\u043d\u044c \u65e5 "]
MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 48}
RUN = "runs/\u65e5\u8a9e"
COMMANDS = {
    "generate": (["generate", f"{RUN}/last", "\u65e5\u672c", "--max_new_tokens", "4"], 0),
    "generate two": (["generate", f"{RUN}/last", "\u65e5", "b", "--max_new_tokens", "4"], 0),
    "predict": (["predict", f"{RUN}/\u65e5", "b"], 2),
    "score": (["score", f"{RUN}/last", "\u65e5\u65e5.jsonl"], 2),
    "data check": (["data", "check", "\u65e5.jsonl"], 0),
    "tokenizer": (["tokenizer", "train", "\u65e5.jsonl", "--kind", "char", "--out", "\u672c"], 0),
    "export": (["export", f"{RUN}/last", "\u672c-hf"], 0),
}  # fmt: skip


class Streams:
    """Replaces standard output and error by streams of an encoding."""

    def __init__(self, encoding, monkeypatch):
        self.encoding = encoding
        for name in ("stdout", "stderr"):
            stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
            monkeypatch.setattr(sys, name, stream)

    def read(self):
        return sys.stdout.buffer.getvalue().decode(self.encoding), sys.stderr.buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data and a run, with names and texts outside latin-1."""
    folder = tmp_path_factory.mktemp("encoding")
    lines = [json.dumps({"text": text * 4}, ensure_ascii=False) for text in TEXTS]
    (folder / "\u65e5.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train(settings(folder, folder / RUN))
    return folder


def settings(folder, run):
    data = str(folder / "\u65e5.jsonl")
    return TrainConfig(
        train_path=data, val_path=data, tokenizer="byte", max_steps=2, model_config=MODEL,
        logger="none", sample_prompt="\u65e5\u672c", work_dir=str(run.parent),
        experiment_name=run.name,
    )  # fmt: skip


@pytest.mark.catches("output_stays_strict")
def test_train_escapes_texts_that_stdout_cannot_encode(folder, monkeypatch):
    streams = Streams("ascii", monkeypatch)
    result = train(settings(folder, folder / "ascii"))
    assert "\\u65e5\\u672c" in streams.read()[0]
    assert sys.stdout.errors == "strict", "left as it was"
    samples = (result.folder / "samples.jsonl").read_text(encoding="utf-8")
    assert json.loads(samples.splitlines()[0])["prompt"] == "\u65e5\u672c", "files are UTF-8"


@pytest.mark.catches("output_stays_strict")
@pytest.mark.parametrize("command", COMMANDS)
def test_command_escapes_texts_that_stdout_cannot_encode(folder, command, monkeypatch):
    monkeypatch.chdir(folder)
    arguments, expected = COMMANDS[command]
    streams = Streams("latin-1", monkeypatch)
    code = cli.main(arguments)
    shown, problems = streams.read()
    assert code == expected
    if expected == 0:
        assert "\\u65e5" in shown or "\\u672c" in shown
    else:
        assert problems.startswith(b"miniformer: error: ")
        assert b"\\u" in problems


def test_data_check_draws_bars_in_ascii(folder, monkeypatch):
    monkeypatch.chdir(folder)
    shown = {}
    for encoding in ("cp1252", "utf-8"):
        with monkeypatch.context() as patch:
            streams = Streams(encoding, patch)
            assert cli.main(["data", "check", "\u65e5.jsonl"]) == 0
            shown[encoding] = streams.read()[0]
    assert "####" in shown["cp1252"]
    assert shown["cp1252"].count("#") == shown["utf-8"].count("\u2588") > 0


@pytest.mark.catches("output_stays_strict")
def test_trainer_with_latin1_output(folder):
    flags = ["--train_path", "\u65e5.jsonl", "--val_path", "\u65e5.jsonl", "--max_steps", "1"]
    flags += ["--tokenizer", "byte", "--model_config", json.dumps(MODEL), "--logger", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "miniformer.trainer", *flags, "--sample_prompt", "\u65e5\u672c"],
        capture_output=True, cwd=folder, timeout=120, check=False,
        env={**environment(), "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u65e5\\u672c" in done.stdout


def test_prompt_from_standard_input_is_utf8(folder, monkeypatch):
    monkeypatch.chdir(folder)
    streams = Streams("latin-1", monkeypatch)
    given = io.TextIOWrapper(io.BytesIO("\u65e5\u672c".encode()), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", given)
    assert cli.main(["generate", f"{RUN}/last", "-", "--max_new_tokens", "1"]) == 0
    assert streams.read()[0].startswith("\\u65e5\\u672c")
