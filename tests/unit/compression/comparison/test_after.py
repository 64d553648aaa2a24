"""The comparison at the end of commands of compression."""

import json

import pytest

from miniformer import Pipeline, Tokenizer, cli
from miniformer.compression.comparison import after
from miniformer.compression.comparison.speeds import Speed
from miniformer.tasks.classification import Classification
from tests.kit import tiny_model

ROWS = [{"input": f"{letter} text {n}", "label": letter} for n in range(20) for letter in "ab"]


@pytest.fixture
def folder(tmp_path):
    """A classifier of three layers, and data."""
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=3, causal=False, output_dim=2,
        pooling="mean", max_seq_len=32,
    )  # fmt: skip
    task = Classification(classes=["a", "b"], input_kind="text")
    Pipeline(model, tokenizer, task).save(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def compared(monkeypatch):
    """The compared directories: name, and whether the model has exits."""
    seen = []

    def speeds_of(paths, workload, *, rounds, threads):
        assert rounds == after.ROUNDS
        seen.append([(path.name, (path / "early_exit.json").exists()) for path in paths])
        return [Speed(0.1, {1: 4.0, 16: 9.0}, {1: 0.5, 16: 1.0}, 10**8) for _ in paths]

    monkeypatch.setattr("miniformer.compression.comparison.compare.measure_speeds", speeds_of)
    return seen


COMMANDS = {
    "quantize": (["out", "--to", "int8"], "out"),
    "prune": (["out", "--remove", "ffn=0.5"], "out"),
}


@pytest.mark.catches("commands_compare_in_the_other_order", "no_compare_has_no_effect")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_with_a_comparison(command, folder, compared, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    flags, _ = COMMANDS[command]
    assert cli.main([command, "model", *flags, "--data", "data.jsonl"]) == 0
    assert compared == [[("model", False), ("out", False)]]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("out: 0.") for line in lines[-3:-1])
    assert lines[-1].startswith("fastest at batch 16: ")
    assert any(line.startswith("40 records") for line in lines)
    again = [command, "model", "again", *flags[1:]]
    assert cli.main([*again, "--data", "data.jsonl", "--no-compare"]) == 0
    assert "loss: " in capsys.readouterr().out
    assert cli.main([command, "model", "third", *flags[1:]]) == 0
    assert len(compared) == 1


@pytest.mark.catches("exits_are_compared_with_themselves")
def test_exits_are_compared_with_all_layers(folder, compared, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    flags = ["calibrate-exit", "model", "data.jsonl", "--max_loss", "60%", "--confidence", "0.9"]
    assert cli.main(flags) == 0
    assert cli.main([*flags, "--data", "data.jsonl", "--no-compare"]) == 0
    assert not compared
    assert cli.main([*flags, "--data", "data.jsonl"]) == 0
    assert compared == [[("all-layers", False), ("model", True)]]
    assert "model: 1.00 of the bytes, slower (0.50x) at batch 1" in capsys.readouterr().out
