"""A model's size where nobody gave one: by what there is to learn from."""

import json

import pytest

from miniformer import trainer
from miniformer.config.presets import SIZES, size_for
from tests.kit import write_jsonl


@pytest.mark.parametrize(
    ("tokens", "size"),
    [
        (1, "tiny"), (199_999, "tiny"), (200_000, "small"), (799_999, "small"),
        (800_000, "medium"), (4_999_999, "medium"), (5_000_000, "base"), (None, "base"),
    ],
)  # fmt: skip
def test_more_data_has_a_larger_model(tokens, size):
    assert size_for(tokens) == size


@pytest.fixture
def run(tmp_path, capsys):
    """Trains a step on so many letters; returns what the run keeps of its settings, and says."""

    def train(letters, *more, code=0):
        write_jsonl(tmp_path / "train.jsonl", ["abcdefghi "] * (letters // 10))
        arguments = [
            "--train_path", str(tmp_path / "train.jsonl"), "--tokenizer", "byte", "--seq_len", "8",
            "--batch_size", "1", "--max_steps", "1", "--work_dir", str(tmp_path / "runs"),
            "--logger", "none", "--experiment_name", "run", *more,
        ]  # fmt: skip
        assert trainer.main(arguments) == code
        said = capsys.readouterr()
        if code:
            return said.err
        folder = max((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return json.loads((folder / "train_config.json").read_text())["model_config"], said.out

    return train


def test_the_data_choose_a_size_and_the_run_says_so(run):
    model, out = run(1_000)
    assert model == SIZES["tiny"]
    assert "size: tiny (2 layers, d_model 64), for 1,100 tokens to learn from" in out
    model, out = run(300_000)
    assert model == SIZES["small"]
    assert "size: small (2 layers, d_model 128)" in out


def test_who_says_more_is_heard(run):
    assert run(1_000, "--size", "medium")[0] == SIZES["medium"]
    model, _ = run(1_000, "--size", "medium", "--model_config", '{"n_kv_heads": 3}')
    assert model == {**SIZES["medium"], "n_kv_heads": 3}, "of its own six heads"
    model, out = run(1_000, "--model_config", '{"dropout": 0.0}')
    assert model == {**SIZES["tiny"], "dropout": 0.0}, "what is no shape leaves the size open"
    model, out = run(1_000, "--model_config", '{"d_model": 48}')
    assert model == {"d_model": 48}, "a shape is not completed with that of another"
    assert "size:" not in out
    assert run(1_000, "--model_config", '{"n_kv_heads": 8}')[0] == {"n_kv_heads": 8}, "of 8 heads"
    model, _ = run(1_000, "--size", "tiny", "--model_config", '{"n_layers": 1}')
    assert model == {**SIZES["tiny"], "n_layers": 1}


def test_a_size_that_cannot_be_is_refused(run):
    assert "size must be one of" in run(100, "--size", "huge", code=2)
    assert "size has no effect with init_from" in run(
        100, "--size", "tiny", "--init_from", "x", code=2
    )
