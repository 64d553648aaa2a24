"""The command `predict`: file to file, standard input, formats, errors by line."""

import csv
import io
import json
import sys

import pytest

from miniformer import cli
from miniformer.checkpoint.data_settings import StoredDataSettings
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.commands import predict
from miniformer.commands.outputs import format_prediction
from miniformer.config import UserError
from miniformer.utils.streams import printable_output
from tests.unit.evaluation.test_run_batches import WORDS, fitted


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model directories of random models, by task."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("classification", "regression", "series", "seq2seq"):
        _, task, tokenizer, model = fitted(name)
        pipeline = Pipeline(model, tokenizer, task)
        if name == "classification":
            pipeline.data_settings = StoredDataSettings(fields={"input_field": "word"})
        pipeline.save(folder / name)
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def give_stdin(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.catches("predictions_have_17_digits", "predictions_are_in_order_of_length")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_predict_file_to_file_is_the_pipeline_on_each_input(models, tmp_path, suffix):
    """With the columns of training, and rows in the order of the file."""
    source, target = tmp_path / f"in.{suffix}", tmp_path / "new" / "out.jsonl"
    if suffix == "jsonl":
        write_rows(source, [{"word": word} for word in WORDS])
    else:
        source.write_text("\n".join(["word"] * (suffix == "csv") + WORDS) + "\n")
    arguments = [str(models / "classification"), "--input", str(source), "--output", str(target)]
    assert cli.main(["predict", *arguments, "--scores", "all"]) == 0
    pipeline = load(models / "classification")
    for word, row in zip(WORDS, read_rows(target), strict=True):
        expected = pipeline.predict(word)
        assert row["label"] == expected["label"]
        assert row["scores"] == pytest.approx(expected["scores"], rel=1e-4)
        assert row["score"] == float(f"{row['score']:.6g}")


@pytest.mark.catches("kept_fields_are_overwritten")
def test_predict_keeps_fields_in_json_lines_and_tables(models, tmp_path, capsys):
    rows = [{"word": "ab", "id": 7, "label": "a, b"}, {"word": "cab", "id": 8, "label": "c"}]
    source, table = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.csv"
    base = ["predict", str(models / "classification"), "--input", source]
    assert cli.main([*base, "--keep", "id,label"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in lines] == [["id", "label", "predicted_label", "score"]] * 2
    assert [line["label"] for line in lines] == ["a, b", "c"]
    assert cli.main([*base, "--keep", "all", "--scores", "all", "--output", str(table)]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert list(cells[0])[:5] == ["word", "id", "label", "input", "predicted_label"]
    assert list(cells[0])[-3:] == ["score_x", "score_y", "score_z"]
    assert [row["label"] for row in cells] == ["a, b", "c"]
    assert sum(float(cells[0][f"score_{name}"]) for name in "xyz") == pytest.approx(1, abs=1e-4)
    assert cli.main([*base, "--keep", "idd"]) == 2
    assert "in.jsonl:1 has no field 'idd' (it has word, id, label" in capsys.readouterr().err


@pytest.mark.catches("records_after_an_invalid_one_are_lost")
def test_predict_goes_on_after_errors_and_names_their_lines(models, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"word": "ab", "id": 1}\n{oops\n{"word": 5, "id": 3}\n{"word": "b", "id": 4}\n'
    )
    target = tmp_path / "out.jsonl"
    base = ["predict", str(models / "classification"), "--input", str(source)]
    base += ["--output", str(target), "--keep", "id"]
    assert cli.main(base) == 2
    rows = read_rows(target)
    assert [row["id"] for row in rows] == [1, None, None, 4]
    assert ["label" in row for row in rows] == [True, False, False, True]
    err = capsys.readouterr().err
    assert f"{source}:2: not JSON" in err
    assert f"{source}:3: 'input'" in err
    assert "2 of 4 inputs have errors; their lines are null" in err
    target.write_text("before")
    assert cli.main([*base, "--on_error", "stop"]) == 2
    assert target.read_text() == "before"  # a file appears whole, or not at all
    assert f"{source}:2: not JSON" in capsys.readouterr().err


@pytest.mark.catches("predict_counts_errors_as_predictions")
def test_predict_prints_what_it_writes_to_a_file(models, tmp_path, capsys):
    source = write_rows(tmp_path / "in.jsonl", [{"word": "ab"}, {"word": 5}, {"word": "b"}])
    good = write_rows(tmp_path / "good.jsonl", [{"word": "ab"}])
    directory, out = str(models / "classification"), str(tmp_path / "out.jsonl")
    assert cli.main(["predict", directory, "--input", good, "--output", out]) == 0
    assert capsys.readouterr() == ("", f"miniformer: 1 prediction written to {out}\n")
    assert cli.main(["predict", directory, "--input", good, "--output", out, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["predict", directory, "--input", source, "--output", out]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    problem = "1 of 3 inputs have errors; their lines are null"
    assert last == f"miniformer: 2 predictions written to {out}; {problem}"
    assert cli.main(["predict", directory, "--input", source, "--output", out, "--quiet"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == f"miniformer: {problem}"
    assert cli.main(["predict", directory, "ab"]) == 0  # predictions are on standard output
    assert capsys.readouterr().err == ""


@pytest.mark.catches("data_is_overwritten_by_results")
def test_predict_does_not_write_over_its_input(models, tmp_path, capsys):
    source, link = tmp_path / "in.jsonl", tmp_path / "link.jsonl"
    write_rows(source, [{"word": word} for word in WORDS])
    link.symlink_to(source)
    before = source.read_bytes()
    base = ["predict", str(models / "classification"), "--input"]
    for data, target in ((source, source), (link, source), (tmp_path / "*.jsonl", source)):
        assert cli.main([*base, str(data), "--output", str(target)]) == 2
        assert "output: " in (err := capsys.readouterr().err)
        assert "in.jsonl is read and would be overwritten; name another file" in err
    assert source.read_bytes() == before


def test_predict_refuses_types_of_files_that_it_does_not_write(models, tmp_path, capsys):
    source = write_rows(tmp_path / "in.jsonl", [{"word": "ab"}])
    base = ["predict", str(models / "classification"), "--input", source, "--output"]
    for name in ("out.parquet", "out.csv.gz", "out.XLSX"):
        assert cli.main([*base, str(tmp_path / name)]) == 2
        message = f"{(tmp_path / name).suffix} is not written; name a .csv, .tsv or .jsonl file"
        assert message in capsys.readouterr().err


def test_predict_names_the_order_of_inputs_and_flags(models, capsys):
    directory = str(models / "classification")
    assert cli.main(["predict", directory, "--top_k", "2", "a b", "c"]) == 2
    message = "unexpected argument 'a b'; write such arguments before the flags; see --help"
    assert message in capsys.readouterr().err
    assert cli.main(["predict", directory, "a b", "c", "--top_k", "2"]) == 0


def test_predict_reads_lines_of_text_on_standard_input(models, capsys, monkeypatch):
    """Each line has its prediction, also an empty one."""
    give_stdin(monkeypatch, "ab\n\n\u2028cab 5\r\n")
    assert cli.main(["predict", str(models / "classification"), "-"]) == 0
    labels = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    expected = load(models / "classification").predict(["ab", "", "\u2028cab 5"])
    assert labels == [answer["label"] for answer in expected]


@pytest.mark.catches("lines_of_standard_input_are_not_numbered")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"input": "a"}\n\n{"txt": "b"}\n', "standard input:3: the record has no 'input' and no"),
        ('"a"\nb\n', "standard input:2: not JSON"),
        ('{"word": "a"}\n{"word": 3}\n', "standard input:2: must be a string"),
        ('{"input": \n', "standard input:1: not JSON"),
    ],
)
def test_predict_command_names_the_line_of_standard_input(
    models, capsys, monkeypatch, text, message
):
    give_stdin(monkeypatch, text)
    assert cli.main(["predict", str(models / "classification"), "--input", "-"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.catches("predict_gives_one_of_several_targets")
def test_predict_several_targets_of_each_source(models, tmp_path, capsys):
    source = write_rows(
        tmp_path / "in.jsonl", [{"source": "ab", "id": 1}, {"source": "b", "id": 2}]
    )
    arguments = ["--num_beams", "3", "--num_return_sequences", "2", "--max_new_tokens", "3"]
    base = ["predict", str(models / "seq2seq"), "--input", source, "--keep", "id"]
    with printable_output():
        assert cli.main([*base, *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = load(models / "seq2seq").generate(
        ["ab", "b"], num_beams=3, num_return_sequences=2, max_new_tokens=3
    )
    assert rows == [{"id": n + 1, "prediction": texts} for n, texts in enumerate(expected)]
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 3, "batch_size": 1}
    assert load(models / "seq2seq").predict(["ab", "b"], **options) == expected
    assert load(models / "seq2seq").predict("ab", **options) == expected[0]
    assert cli.main([*base, *arguments, "--batch_size", "1"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("classification", [], "predict needs inputs, or a file: --input FILE"),
        ("classification", ["a", "--scores", "some"], "scores must be none, top, all, not 'some'"),
        ("classification", ["a", "--on_error", "wait"], "on_error must be skip, stop"),
        ("classification", ["a", "--batch_size", "0"], "batch_size must be at least 1"),
        ("classification", ["a", "--num_beams", "2"], "num_beams is for models that generate"),
        ("classification", ["--input", "missing.csv"], "missing.csv"),
        ("series", ["--input", "TEXT"], "lines of text, and the model reads other inputs"),
        ("classification", ["TEXT"], "--input"),
    ],
)
def test_predict_errors_name_value_and_fix(models, tmp_path, capsys, model, arguments, message):
    (tmp_path / "t.txt").write_text("a\n")
    arguments = [str(tmp_path / "t.txt") if x == "TEXT" else x for x in arguments]
    assert cli.main(["predict", str(models / model), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, message in err) == ("", True), err


@pytest.mark.parametrize("name", ["classification", "regression", "series", "seq2seq"])
def test_predictions_do_not_depend_on_the_batch_size(models, name):
    pipeline = load(models / name)
    records, *_ = fitted(name)
    inputs = [record.get("input", record.get("source")) for record in records]
    alone = [pipeline.predict(value) for value in inputs]
    for size in (None, 1, 3):
        answers = pipeline.predict(inputs, batch_size=size)
        for answer, expected in zip(answers, alone, strict=True):
            if isinstance(answer, dict):
                assert answer["label"] == expected["label"]
                answer, expected = answer["scores"], expected["scores"]
            assert answer == (expected if name == "seq2seq" else pytest.approx(expected, rel=1e-4))


def test_predict_of_a_large_file_reads_it_in_chunks(models, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_CHUNK_SIZE", 4)
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"{word}\n" for word in WORDS))
    arguments = ["--input", str(source), "--output", str(target)]
    assert cli.main(["predict", str(models / "classification"), *arguments]) == 0
    assert len(read_rows(target)) == len(WORDS)


def test_format_prediction_selects_probabilities():
    answer = {"label": "a", "score": 0.7, "scores": {"b": 0.123456789, "a": 0.7, "c": 0.17654}}
    top = [{"label": "a", "score": 0.7}, {"label": "c", "score": 0.17654}]
    assert format_prediction(answer, "none", None) == {"label": "a"}
    assert format_prediction(answer, "top", 2) == {"label": "a", "score": 0.7, "top": top}
    assert format_prediction(answer, "all", None)["scores"]["b"] == 0.123457
    assert format_prediction([1.23456789, "x"], "top", None) == [1.23457, "x"]


@pytest.mark.parametrize(
    ("flags", "message"), [(("top", 2), "top_k lists classes"), (("all", None), "scores=all lists")]
)
@pytest.mark.parametrize("prediction", ["a target", 1.5, {"tags": ["O"], "scores": [0.9]}])
def test_lists_of_classes_are_refused_for_other_predictions(prediction, flags, message):
    with pytest.raises(UserError, match=message):
        format_prediction(prediction, *flags)


@pytest.mark.catches("labels_are_printed_without_probabilities")
def test_prediction_of_several_labels_has_their_probabilities_by_default():
    answer = {"labels": ["b"], "scores": {"a": 0.25, "b": 0.625}}
    assert format_prediction(answer, "top", None) == answer
    assert format_prediction(answer, "all", None) == answer
    assert format_prediction(answer, "none", None) == {"labels": ["b"]}
    top = [{"label": "b", "score": 0.625}]
    assert format_prediction(answer, "top", 1) == {"labels": ["b"], "top": top}
    assert format_prediction(answer, "all", 1) == {**answer, "top": top}
