"""Training from tables: the same losses as from JSON lines, and columns that a model remembers."""

import json

import pytest

import miniformer
from miniformer import cli
from miniformer.data.reading.mapping import FieldMapping
from miniformer.trainer import main

ROWS = [(f"a {word} film, {i}", ["bad", "good"][i % 2]) for i, word in enumerate("xyzuvw" * 4)]
COLUMNS = ["--input_field", "review", "--label_field", "verdict"]


def train(folder, name, *flags):
    return main([
        "--task", "classification", "--train_path", str(folder / name), "--tokenizer", "byte",
        "--val_share", "0.25", "--max_steps", "4", "--logger", "none", *flags,
        "--model_config", '{"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}',
        "--work_dir", str(folder / "runs"), "--experiment_name", name.replace(".", "_"),
        "--precision", "float32",
    ])  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with runs that read the same data as CSV and as JSON lines."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "a.csv").write_text(
        "review;verdict;id\n" + "".join(f'"{text}";{label};{i}\n'
                                        for i, (text, label) in enumerate(ROWS))
    )  # fmt: skip
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"input": text, "label": label}) + "\n" for text, label in ROWS)
    )
    assert train(folder, "a.csv", *COLUMNS) == 0
    assert train(folder, "a.jsonl") == 0
    return folder


def metrics(folder, name):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in row.items() if "loss" in key or "accuracy" in key}
        for row in rows
    ]


def test_training_from_a_table_gives_the_same_losses(folder):
    assert metrics(folder, "a_csv") == metrics(folder, "a_jsonl") != []


@pytest.mark.catches("columns_of_the_training_data_are_forgotten")
def test_model_remembers_the_columns_of_its_data(folder):
    pipeline = miniformer.load(folder / "runs" / "a_csv" / "last")
    mapping = FieldMapping(
        input_field="review", label_field="verdict", optional=True,
        kinds={"review": "text", "verdict": "text", "id": "integer"},
    )  # fmt: skip
    assert pipeline.data_settings.mapping() == mapping
    pipeline.save(folder / "copy")
    assert miniformer.load(folder / "copy").data_settings.mapping() == mapping
    from_table, from_lines = (pipeline.evaluate(folder / name) for name in ("a.csv", "a.jsonl"))
    assert from_table.metrics == from_lines.metrics


def test_resumed_run_keeps_its_columns(folder, capsys):
    run = str(folder / "runs" / "a_csv")
    assert main(["--resume", run, "--input_field", "verdict"]) == 2
    assert "input_field is 'review' in" in capsys.readouterr().err
    assert main(["--resume", run, "--max_steps", "5"]) == 0


def test_data_check_uses_the_flags(folder, capsys):
    table = str(folder / "a.csv")
    assert cli.main(["data", "check", table, "--task", "classification", *COLUMNS]) == 0
    output = capsys.readouterr().out
    assert "24 valid records" in output
    assert "labels: 2 classes" in output
    assert "--input_field review --label_field verdict" in output
    assert cli.main(["data", "check", table, "--task", "classification"]) == 2
    assert "name the columns: --input_field review --label_field verdict" in capsys.readouterr().err
    assert cli.main(["data", "check", table, "--delimiter", "ab"]) == 2
    assert "error: delimiter must be one ASCII" in capsys.readouterr().err
