"""Files of earlier versions: model directories load and runs resume.

`tests/fixtures/format_1` holds one interrupted run of each task, written by version 0.1.0 before
its names changed. Each run of 9 steps was stopped after step 6; `expected.json` holds what that
version computed: predictions of `best`, and the losses of steps 7 to 9 of the uninterrupted run.
"""

import json
import shutil

import pytest

import miniformer
from miniformer import trainer
from tests.kit import ROOT

RUNS = sorted((ROOT / "tests" / "fixtures" / "format_1").iterdir())


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def run(request, tmp_path, monkeypatch):
    """A copy of a run where its configuration says that it is."""
    folder = tmp_path / "runs" / request.param.name
    shutil.copytree(request.param, folder)
    (tmp_path / "data").mkdir()
    shutil.copy(folder / "records.jsonl", tmp_path / "data" / f"{folder.name}.jsonl")
    monkeypatch.chdir(tmp_path)
    return folder


def predictions(folder, records):
    pipeline = miniformer.load(folder / "best")
    if folder.name == "masked_lm":
        return pipeline.embed([record["text"][:30] for record in records]).tolist()
    if folder.name == "seq2seq":
        targets = [record["target"] for record in records]
        scored = pipeline.score(targets, [record["source"] for record in records])
        return [item.total_logprob for item in scored]
    if folder.name in ("classification", "regression"):
        return pipeline.predict([record["input"] for record in records])
    texts = [record["text"] for record in records]
    scored = pipeline.score([text[20:30] for text in texts], [text[:20] for text in texts])
    return [item.total_logprob for item in scored]


def numbers(value):
    """The numbers in nested lists and dicts, in order; strings are compared with them."""
    if isinstance(value, dict):
        return [item for key in value for item in (key, *numbers(value[key]))]
    if isinstance(value, list):
        return [item for element in value for item in numbers(element)]
    return [value]


def test_model_directory_of_format_1_predicts_the_same(run):
    expected = json.loads((run / "expected.json").read_text())["predictions"]
    actual = numbers(predictions(run, read_lines(run / "records.jsonl")[:3]))
    assert actual == [
        pytest.approx(item, rel=1e-4, abs=1e-4) if isinstance(item, float) else item
        for item in numbers(expected)
    ]


@pytest.mark.catches("features_of_earlier_directories_are_standardized")
def test_run_of_format_1_resumes_with_the_same_losses(run):
    expected = json.loads((run / "expected.json").read_text())
    assert trainer.main(["--resume", f"runs/{run.name}"]) == 0
    rows = [row for row in read_lines(run / "metrics.jsonl") if row["step"] > expected["step"]]
    losses = {str(row["step"]): row["train_loss"] for row in rows if "train_loss" in row}
    # Orthogonalization in bf16 differs a little from one processor to another.
    assert losses == pytest.approx(expected["train_loss"], rel=2e-3)
    validated = [row["val_loss"] for row in rows if "val_loss" in row]
    assert validated == [pytest.approx(expected["val_loss"], rel=2e-3)]
