"""Defaults of model, batch and vocabulary sizes, by the amount of training data."""

import io
import json
import random
from functools import partialmethod

import pytest
from rich.console import Console

from miniformer import TrainConfig, trainer
from miniformer.config.size_presets import SIZE_PRESETS, size_for_tokens
from miniformer.data.tokenizers.training import TextSample
from miniformer.training.setup.prepare import prepare
from miniformer.training.tuning.data_defaults import default_batch_size, default_vocab_size
from tests.kit import write_jsonl


@pytest.mark.catches("little_data_gets_a_large_model")
@pytest.mark.parametrize(
    ("tokens", "size"),
    [
        (1, "tiny"), (199_999, "tiny"), (200_000, "small"), (799_999, "small"),
        (800_000, "medium"), (4_999_999, "medium"), (5_000_000, "base"), (None, "base"),
    ],
)  # fmt: skip
def test_model_size_grows_with_the_data(tokens, size):
    assert size_for_tokens(tokens) == size


@pytest.fixture
def run(tmp_path, capsys):
    """Trains one step on so many letters; returns the saved model config and the output."""

    def train(letters, *more, code=0):
        write_jsonl(tmp_path / "train.jsonl", ["abcdefghi "] * (letters // 10))
        arguments = [
            "--train_path", str(tmp_path / "train.jsonl"), "--tokenizer", "byte", "--seq_len", "8",
            "--batch_size", "1", "--max_steps", "1", "--work_dir", str(tmp_path / "runs"),
            "--logger", "none", "--experiment_name", "run", *more,
        ]  # fmt: skip
        assert trainer.main(arguments) == code
        output = capsys.readouterr()
        if code:
            return output.err
        folder = max((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return json.loads((folder / "train_config.json").read_text())["model_config"], output.out

    return train


def test_model_size_default_is_printed(run):
    model, out = run(1_000)
    assert model == SIZE_PRESETS["tiny"]
    assert "size: tiny (2 layers, d_model 64), for 1,100 training tokens" in out
    model, out = run(300_000)
    assert model == SIZE_PRESETS["small"]
    assert "size: small (2 layers, d_model 128)" in out


def test_model_size_default_yields_to_given_settings(run):
    assert run(1_000, "--model_size", "medium")[0] == SIZE_PRESETS["medium"]
    model, _ = run(1_000, "--model_size", "medium", "--model_config", '{"n_kv_heads": 3}')
    assert model == {**SIZE_PRESETS["medium"], "n_kv_heads": 3}, "of its own six heads"
    model, out = run(1_000, "--model_config", '{"dropout": 0.0}')
    assert model == {**SIZE_PRESETS["tiny"], "dropout": 0.0}, (
        "what is no shape leaves the size open"
    )
    model, out = run(1_000, "--model_config", '{"d_model": 48}')
    assert model == {"d_model": 48}, "a shape is not completed with that of another"
    assert "size:" not in out
    assert run(1_000, "--model_config", '{"n_kv_heads": 8}')[0] == {"n_kv_heads": 8}, "of 8 heads"
    model, _ = run(1_000, "--model_size", "tiny", "--model_config", '{"n_layers": 1}')
    assert model == {**SIZE_PRESETS["tiny"], "n_layers": 1}


def test_model_size_unknown_name_is_refused(run):
    assert "model_size must be one of" in run(100, "--model_size", "huge", code=2)
    assert "size has no effect with init_from" in run(
        100, "--model_size", "tiny", "--init_from", "x", code=2
    )


@pytest.mark.catches("each_device_takes_the_whole_batch")
@pytest.mark.parametrize(
    ("tokens", "row", "devices", "size"),
    [
        (400_000, 1_024, 1, 2),  # 2,048 tokens at least
        (10_000_000, 1_000, 1, 10),  # a thousandth of all
        (10_000_000, 1_000, 2, 5),
        (100_000_000, 2_048, 1, 8),  # 16,384 tokens at most
        (100_000_000, 2_048, 64, 1),
        (4_000_000, 8_192, 1, 1),  # one window is more already
        (600_000, 13.0, 1, 158),  # 2,048 tokens, of short examples
        (100_000_000, 13.0, 1, 256),  # rows at most
        (130_000, 13.0, 1, 100),  # a hundred batches of all
        (6_500, 13.0, 1, 16),  # but no fewer examples than in other tasks
    ],
)
def test_batch_size_default_is_small_for_little_text(tokens, row, devices, size):
    assert default_batch_size(tokens, row, devices) == size


def test_vocab_size_default_grows_with_the_root_of_the_text():
    sizes = {1_000_000: 1_000, 4_000_000: 2_000, 100_000_000: 10_000}
    assert {size: default_vocab_size(size) for size in sizes} == sizes
    assert default_vocab_size(0) == default_vocab_size(200_000) == 512
    assert default_vocab_size(10**9) == 10_000


def data(folder):
    """A file of 900,000 letters in random words."""
    letters = random.Random(0).choices("abcdefghijkl     ", k=900_000)
    texts = ["".join(letters[begin : begin + 3_000]) for begin in range(0, len(letters), 3_000)]
    records = [
        {"text": text, "input": text, "label": n % 2, "source": text, "target": text}
        for n, text in enumerate(texts)
    ]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def prepared(folder, task="language_modeling", **settings):
    """A prepared run on that file, and its console output."""
    console = Console(width=200, file=io.StringIO())
    run = prepare(TrainConfig(train_path=str(data(folder)), task=task, **settings), console)
    return run, console.file.getvalue()


def test_language_modeling_has_defaults_for_batch_and_vocab_size(tmp_path):
    run, output = prepared(tmp_path)
    assert run.tokenizer.vocab_size == 949  # the root of 900,000
    assert "tokenizer: bpe, 949 ids" in output
    assert "batches: 2 x 1,024 tokens\n" in output
    assert run.config.batch_size == run.data.batch_size == 2
    assert len(next(iter(run.data.train_dataloader()))["input_ids"]) == 2
    run, _ = prepared(tmp_path, model="seq2seq", seq_len=512)
    assert run.config.batch_size == 4, "more windows of a shorter length"
    run, output = prepared(tmp_path, devices=2, seq_len=512)
    assert run.config.batch_size == 2, "four are shared"
    run, pairs = prepared(tmp_path, "seq2seq", model_config={"max_seq_len": 32})
    assert run.config.batch_size == 16, "three hundred examples are few"
    assert "batches: 16 x 64 tokens" in pairs, "of sources and targets"
    assert "batches: 2 x 512 tokens on each device\n" in output


def test_batch_and_vocab_size_given_are_used(tmp_path):
    run, output = prepared(tmp_path, batch_size=3, model_config={"vocab_size": 300})
    assert (run.config.batch_size, run.tokenizer.vocab_size) == (3, 300)
    assert "batches" not in output
    run, output = prepared(tmp_path, batch_tokens=3_072)
    assert len(next(iter(run.data.train_dataloader()))["input_ids"]) == 3
    assert "batches" not in output
    run, output = prepared(tmp_path, tokenizer="byte")
    assert run.tokenizer.vocab_size == 258
    run, output = prepared(tmp_path, find_batch_size=True)
    assert "batches" not in output, "another size is still to be found"


def test_batch_size_default_for_data_not_in_memory_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("miniformer.data.batching.chunks.MAX_IN_MEMORY_BYTES", 1_000)
    run, output = prepared(tmp_path, devices=2, seq_len=512)
    assert run.config.batch_tokens == run.data.batch_tokens == 8_192
    assert "batches: up to 8,192 tokens on each device\n" in output
    assert len(next(iter(run.data.train_dataloader()))["input_ids"]) == 16


def test_vocab_size_default_ignores_a_sample(tmp_path, monkeypatch):
    """The text exceeds the tokenizer's sample, so the vocabulary has the size for a large text."""
    monkeypatch.setattr(
        TextSample, "__init__", partialmethod(TextSample.__init__, max_chars=500_000)
    )
    run, output = prepared(tmp_path)
    assert run.tokenizer.vocab_size == 10_000
    assert "trained on the first" in output


@pytest.mark.catches("found_settings_are_refused_beside_the_wish")
def test_batch_size_default_is_kept_by_resume(tmp_path):
    train = data(tmp_path)
    arguments = ["--work_dir", str(tmp_path), "--experiment_name", "run", "--logger", "none"]
    more = ["--seq_len", "512", "--model_size", "tiny", "--max_steps"]
    assert trainer.main(["--train_path", str(train), *arguments, *more, "1"]) == 0
    settings = json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert settings["batch_size"] == 4
    assert trainer.main(["--resume", str(tmp_path / "run"), "--max_steps", "2"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["tokens"] for row in rows] == [4 * 512, 2 * 4 * 512]


def test_batch_and_vocab_size_defaults_of_other_tasks(tmp_path):
    run, output = prepared(tmp_path, task="classification")
    assert run.config.batch_size == run.data.batch_size == 16
    assert run.tokenizer.vocab_size == 10_000
    assert "batches" not in output
