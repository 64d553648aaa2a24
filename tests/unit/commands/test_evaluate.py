"""The command `evaluate`."""

import csv
import json

import pytest

from miniformer import cli
from miniformer.checkpoint.data_settings import StoredDataSettings
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config import UserError
from tests.unit.evaluation.test_run_batches import LABELS, SIZES, fitted

SIZE_FIELDS = {"seq_len": SIZES.seq_len, "batch_size": SIZES.batch_size}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a model, and its data as JSON lines and CSV with other column names."""
    folder = tmp_path_factory.mktemp("run")
    _, task, tokenizer, model = fitted("classification")
    pipeline = Pipeline(model, tokenizer, task)
    pipeline.data_settings = StoredDataSettings(
        **SIZE_FIELDS, fields={"input_field": "word", "label_field": "kind"}
    )
    pipeline.save(folder / "best")
    (folder / "train_config.json").write_text("{}")
    rows = [
        {"word": r["input"], "kind": r["label"], "lang": "ab"[n % 2]} for n, r in enumerate(LABELS)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "test.jsonl").write_text(lines)
    with (folder / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "kind", "lang"])
        writer.writeheader()
        writer.writerows({"text": r["word"], "kind": r["kind"], "lang": r["lang"]} for r in rows)
    return folder


@pytest.mark.catches(
    "evaluation_ignores_sizes_of_training",
    "columns_of_training_are_forgotten",
    "run_folder_is_refused",
)
def test_evaluate_uses_columns_and_sizes_of_training(run, capsys):
    arguments = ["evaluate", str(run), str(run / "test.jsonl"), "--json", "--resamples", "0"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    metrics = {name: item["value"] for name, item in json.loads(out)["metrics"].items()}
    expected = load(run / "best").evaluate(
        [{"word": r["input"], "kind": r["label"]} for r in LABELS], num_resamples=0
    )
    assert metrics == expected.metrics
    assert err == f"note: {run} is a run folder; using {run / 'best'}\n"
    from miniformer.data.reading.records import as_records
    from miniformer.evaluation.run_batches import run_batches

    records, task, tokenizer, model = fitted("classification")
    assert (
        metrics == run_batches(model, task, tokenizer, as_records(records, task.schema), SIZES)[0]
    )


@pytest.mark.catches("predictions_are_not_written")
def test_evaluate_writes_report_and_predictions(run, tmp_path, capsys):
    report = tmp_path / "new" / "report.html"
    arguments = [str(run), str(run / "test.csv"), "--input_field", "text", "--by", "lang"]
    arguments += ["--against", str(run), "--out", str(report), "--resamples", "20"]
    assert cli.main(["evaluate", *arguments]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert "against" in out
    assert "McNemar" in out
    assert "\na  " in out
    assert f"report: {report}" in err
    assert "Comparison" in report.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in report.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["truth"] for row in rows] == [record["label"] for record in LABELS]
    assert rows[1]["record"] == {
        "input": "aba", "label": "x", "text": "aba", "kind": "x", "lang": "b",
    }  # fmt: skip
    assert all(row["score"] == float(f"{row['score']:.6g}") for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--by", "language"], "by='language': no record of"),
        (["--threads", "0"], "threads must be at least 1, not 0"),
        (["--resamples", "-1"], "resamples must be at least 0"),
        (["--batch_size", "0"], "batch_size must be a positive integer, not 0"),
        (["--out", "."], "out: . is a folder"),
        (["--out", "r.jsonl"], "out: r.jsonl is for the report and predictions"),
        (["--out", "r.pdf"], "out: r.pdf is to be an HTML page; name it .html"),
        (["--input_field", "wrd"], "did you mean 'word'?"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_evaluate_errors_name_value_and_fix(run, capsys, flags, message):
    assert cli.main(["evaluate", str(run / "best"), str(run / "test.jsonl"), *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, message in err) == ("", True), err


@pytest.mark.catches("data_is_overwritten_by_results")
@pytest.mark.parametrize("flags", [["--out", "t.html"], ["--predictions", "./t.jsonl"]])
def test_evaluate_does_not_write_over_its_data(run, tmp_path, capsys, monkeypatch, flags):
    """The default path of the predictions has the name of the report; it may be that of data."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.jsonl"
    path.write_text('{"word": "ab", "kind": "x"}\n{"word": "ab", "kind": "y"}\n')
    before = path.read_bytes()
    for data in ("t.jsonl", "*.jsonl", str(path)):
        assert cli.main(["evaluate", str(run / "best"), data, *flags]) == 2
        err = capsys.readouterr().err
        assert "predictions: t.jsonl is read and would be overwritten; name another file" in err
        assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.jsonl"]


def test_evaluate_errors_name_the_line(run, tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text('{"word": "ab", "kind": "x"}\n{"word": "ab", "kind": "w"}\n')
    assert cli.main(["evaluate", str(run / "best"), str(path)]) == 2
    assert f"{path}:2: 'label' is 'w', which is none of the classes" in capsys.readouterr().err


def test_evaluate_of_an_embedding_model_is_an_error():
    from miniformer.tasks.embedding import EmbeddingTask

    _, _, tokenizer, model = fitted("classification")
    with pytest.raises(UserError, match="no labels"):
        Pipeline(model, tokenizer, EmbeddingTask(input_kind="text")).evaluate([{"input": "a"}])
