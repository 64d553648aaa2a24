"""Settings that follow from the training data: sizes, and options of the task."""

import io
import json
import random
import types
from functools import partialmethod

import numpy as np
import pytest
from rich.console import Console

from miniformer import TrainConfig, registry, trainer
from miniformer.config.resolved import given_task_options
from miniformer.config.size_presets import SIZE_PRESETS
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.training import TextSample
from miniformer.training.setup.prepare import prepare
from miniformer.training.tuning.data_defaults import (
    default_batch_size,
    resolve_lr,
    resolve_model_size,
    resolve_task_options,
    size_for_tokens,
)
from miniformer.training.tuning.tokenizer_defaults import default_vocab_size
from tests.kit import a_series, write_jsonl


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
    assert "model_size: tiny (2 layers, d_model 64, for 1,100 training tokens)" in out
    model, out = run(300_000)
    assert model == SIZE_PRESETS["small"]
    assert "model_size: small (2 layers, d_model 128, for" in out


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
    assert "model_size:" not in out
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


@pytest.mark.catches("given_width_is_overwritten")
def test_resolve_model_size_leaves_a_given_width():
    data = types.SimpleNamespace(num_tokens=lambda split: 1000)
    config = TrainConfig(train_path="a.jsonl")
    assert resolve_model_size(config, data).value == "tiny"
    for settings in ({"model_config": {"d_model": 48}}, {"model_size": "base"}):
        assert resolve_model_size(TrainConfig(train_path="a.jsonl", **settings), data) is None


@pytest.mark.catches("pretrained_weights_learn_as_fast_as_random_ones")
def test_resolve_lr_takes_a_tenth_for_pretrained_weights():
    assert resolve_lr("muon", from_scratch=True).value == 5e-3
    setting = resolve_lr("muon", from_scratch=False)
    assert setting.value == pytest.approx(5e-4)
    assert "a tenth of the default of muon" in str(setting)


PAIRS = [{"input": ["a b", "b c"], "label": n % 2, "value": n} for n in range(3)]
TEXTS = [{"input": "abc"[: n % 3 + 1], "label": n % 2, "value": float(n)} for n in range(9)]


def resolved(name, records, **options):
    """A task fitted to records, and its resolved options as lines."""
    task = registry.get("task", name).from_dict(given_task_options(options))
    records = as_records(records, task.schema)
    task, settings = resolve_task_options(task.fit(records), options, records)
    return task, [str(setting) for setting in settings]


@pytest.mark.catches("pairs_are_marked_only_where_it_is_said")
def test_resolve_task_options_marks_shared_tokens_of_pairs():
    for name in ("classification", "regression"):
        task, lines = resolved(name, PAIRS)
        assert task.num_token_types() == 4
        assert lines == ["task_config.shared_token_types: True (inputs are pairs of texts)"]
        assert resolved(name, TEXTS) == (resolved(name, TEXTS)[0], [])
    task, lines = resolved("masked_lm", PAIRS, field="input")
    assert task.num_token_types() == 2
    assert lines == ["task_config.shared_token_types: False (marks would reveal masked tokens)"]
    streamed = registry.get("task", "classification")(input_kind="pair", classes=[0, 1])
    assert resolve_task_options(streamed, {}, None)[0].shared_token_types


@pytest.mark.catches("data_overrides_given_task_options")
def test_resolve_task_options_leaves_given_options(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not\n" * 9)
    series = a_series(np.random.default_rng(0))
    for name, records, option, value, automatic in (
        ("classification", PAIRS, "shared_token_types", False, True),
        ("masked_lm", PAIRS, "shared_token_types", True, False),
        ("language_modeling", str(tmp_path / "a.txt"), "prepend_bos", True, False),
        ("language_modeling", [{"text": "a"}], "prepend_bos", False, True),
        ("regression", series, "target_delta_of", "none", 1),
        ("regression", series, "target_delta_of", 0, 1),
    ):
        fixed = {"field": "input"} if name == "masked_lm" else {}
        task, lines = resolved(name, records, **fixed, **{option: value})
        assert (getattr(task, option), lines) == (value, [])
        for auto in ({}, {option: "auto"}, {option: None}):
            task, lines = resolved(name, records, **fixed, **auto)
            assert getattr(task, option) == automatic
            assert lines[0].startswith(f"task_config.{option}: {automatic} (")


@pytest.mark.catches("fit_marks_pairs_unasked")
def test_fit_never_guesses_options(tmp_path):
    """Only `train` resolves options from the data; `fit` has fixed defaults."""
    (tmp_path / "a.txt").write_text("to be or not\n" * 9)
    for name, records, option, value in (
        ("classification", PAIRS, "shared_token_types", False),
        ("language_modeling", str(tmp_path / "a.txt"), "prepend_bos", True),
        ("regression", a_series(np.random.default_rng(0)), "target_delta_of", "none"),
    ):
        task = registry.get("task", name)()
        assert getattr(task.fit(as_records(records, task.schema)), option) == value


def test_resolve_task_options_fits_the_target_of_a_series():
    records = a_series(np.random.default_rng(0))
    task, lines = resolved("regression", records)
    assert task == resolved("regression", records, target_delta_of=1)[0]
    assert lines == [
        "task_config.target_delta_of: 1 (held-out records confirm: the value is its next number)"
    ]
    plain, _ = resolved("regression", records, target_mean=0.0, target_std=9.0)
    assert plain.target_delta_of == "none"
    values = np.random.default_rng(1).normal(0, 20, len(records))
    others = [{**item, "value": float(y)} for item, y in zip(records, values, strict=True)]
    alone = [{**item, "input": item["input"][-1:]} for item in records]
    for none in (others, alone):
        task, lines = resolved("regression", none)
        assert (task.target_delta_of, task.is_series()) == ("none", False)
        assert lines == [
            "task_config.target_delta_of: none (the value is no feature's next number)"
        ]


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
    """A prepared run on all of that file, and its console output with the settings."""
    console = Console(width=200, file=io.StringIO())
    config = TrainConfig(train_path=str(data(folder)), task=task, val_share=0, **settings)
    run = prepare(config, console)
    return run, f"{console.file.getvalue()}{run.summary()}\n"


def test_language_modeling_has_defaults_for_batch_and_vocab_size(tmp_path):
    run, output = prepared(tmp_path)
    assert run.tokenizer.vocab_size == 949  # the root of 900,000
    assert "tokenizer: bpe, 949 ids" in output
    assert "batch_size: 2 (2,048 tokens, for " in output
    assert "vocab_size: 949 (at most, for a text of 900,000 bytes)" in output
    assert run.config.batch_size == run.data.batch_size == 2
    assert len(next(iter(run.data.train_dataloader()))["input_ids"]) == 2
    run, _ = prepared(tmp_path, model="seq2seq", seq_len=512)
    assert run.config.batch_size == 4, "more windows of a shorter length"
    run, output = prepared(tmp_path, devices=2, seq_len=512)
    assert run.config.batch_size == 2, "four are shared"
    run, pairs = prepared(tmp_path, "seq2seq", model_config={"max_seq_len": 32})
    assert run.config.batch_size == 16, "three hundred examples are few"
    assert "batch_size: 16 (1,024 tokens, for" in pairs, "of sources and targets"
    assert "batch_size: 2 (1,024 tokens on each device, for" in output


def test_batch_and_vocab_size_given_are_used(tmp_path):
    run, output = prepared(tmp_path, batch_size=3, model_config={"vocab_size": 300})
    assert (run.config.batch_size, run.tokenizer.vocab_size) == (3, 300)
    assert "  batch_size: 3\n" in output
    assert "batch_tokens" not in output
    run, output = prepared(tmp_path, batch_tokens=3_072)
    assert len(next(iter(run.data.train_dataloader()))["input_ids"]) == 3
    assert "  batch_tokens: 3072\n" in output
    assert "batch_size" not in output
    run, output = prepared(tmp_path, tokenizer="byte")
    assert run.tokenizer.vocab_size == 258


def test_batch_size_default_for_data_not_in_memory_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("miniformer.data.batching.chunks.MAX_IN_MEMORY_BYTES", 1_000)
    run, output = prepared(tmp_path, devices=2, seq_len=512)
    assert run.config.batch_tokens == run.data.batch_tokens == 8_192
    assert "batch_tokens: 8192 (for data that is not in memory on each device)" in output
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
    more = ["--val_share", "0", "--seq_len", "512", "--model_size", "tiny", "--max_steps"]
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
    letters = sum(len(record["input"].encode()) for record in run.data.chunks["train"].records)
    assert run.tokenizer.vocab_size == round(4 * letters**0.5)
    assert "\nbatch_" not in output
