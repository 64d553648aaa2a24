"""Evaluation: intervals, groups, comparison, worst records, JSON, text and report."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

from miniformer import Transformer
from miniformer.config import UserError
from miniformer.data.reading.records import as_records
from miniformer.evaluation.comparison import compare
from miniformer.evaluation.evaluation import evaluate, with_comparison
from miniformer.evaluation.intervals import Bootstrap
from miniformer.evaluation.run_batches import BatchSettings
from miniformer.evaluation.sections import render_sections
from miniformer.evaluation.text import format_value
from miniformer.tasks.base import Task
from tests.unit.evaluation.test_run_batches import DATA, SIZES, fitted

FEW = Bootstrap(50)


def with_language(records, task):
    """The same records with a field `lang`, which one record lacks."""
    changed = [{**record, "lang": ["de", "fr"][n % 2]} for n, record in enumerate(records)]
    del changed[-1]["lang"]
    return as_records(changed, task.schema)


@pytest.fixture(scope="module")
def evaluation():
    records, task, tokenizer, model = fitted("classification")
    records = with_language(records, task)
    return evaluate(model, task, tokenizer, records, SIZES, by="lang")


@pytest.mark.catches("evaluation_text_is_wide", "evaluation_report_replaces_other_files")
@pytest.mark.parametrize("name", DATA)
def test_evaluation_of_every_task_prints_and_writes_its_metrics(name, tmp_path):
    records, task, tokenizer, model = fitted(name)
    result = evaluate(model, task, tokenizer, records, SIZES, bootstrap=FEW)
    assert next(iter(result.metrics)) == task.metrics[0]
    without = [name for name in result.metrics if name not in result.intervals]
    names = ", ".join(name.replace("_", " ") for name in without)  # of a constant prediction: MCC
    assert result.interval_note.endswith(f" {names} (no interval)" if without else "")
    for low, high in result.intervals.values():
        assert low <= high
    lines = repr(result).splitlines()
    assert max(map(len, lines)) <= 80
    labels = {metric.replace("_", " ") for metric in result.metrics}
    assert labels <= {re.split("  +", line)[0] for line in lines}
    result.write_report(tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "95 % interval" in page
    values = json.loads(result.to_json())
    assert {key: item["value"] for key, item in values["metrics"].items()} == result.metrics


@pytest.mark.catches("equal_resamples_are_an_interval")
@pytest.mark.parametrize(("label", "accuracy"), [("x", 1.0), ("y", 0.0)])
def test_a_share_of_all_records_has_the_interval_of_wilson(label, accuracy, monkeypatch):
    """The bootstrap has no width where all records are right, or none is."""
    records, task, tokenizer, model = fitted("classification")
    head = Transformer.classify
    constant = torch.tensor([5.0, 0.0, 0.0])
    monkeypatch.setattr(model, "classify", lambda **inputs: 0 * head(model, **inputs) + constant)
    rows = [{**record, "label": label, "lang": "de"} for record in records]
    count, records = len(rows), as_records(rows, task.schema)
    result = evaluate(model, task, tokenizer, records, SIZES, by="lang", bootstrap=FEW)
    assert result.metrics["accuracy"] == accuracy
    expected = stats.binomtest(round(count * accuracy), count).proportion_ci(method="wilson")
    limits = pytest.approx((expected.low, expected.high))
    assert result.intervals == {"accuracy": limits}
    assert result.groups[0].intervals == {"accuracy": limits}
    others = "macro f1, mcc, loss (no interval)"
    note = f"all resamples are equal: accuracy (Wilson's interval), {others}"
    text = " ".join(repr(result).split())
    assert note in text
    assert "Wilson's interval where accuracy is 0 or 1" in text
    assert note in dict(render_sections(result))["Metrics"].replace("&#x27;", "'")
    metrics = json.loads(result.to_json())["metrics"]
    assert metrics["accuracy"]["method"] == "wilson"
    assert set(metrics["mcc"]) == {"value"}
    result = evaluate(model, task, tokenizer, records, SIZES, bootstrap=Bootstrap(0))
    assert (result.intervals, result.interval_note) == ({}, "")


@pytest.mark.catches("groups_have_the_metrics_of_all")
def test_groups_are_evaluations_of_their_records(evaluation):
    records, task, tokenizer, model = fitted("classification")
    records = list(with_language(records, task))
    assert [(group.value, group.num_records) for group in evaluation.groups] == [
        ("de", 10), ("fr", 9), (None, 1),
    ]  # fmt: skip
    for group in evaluation.groups:
        members = [record for record in records if record.get("lang") == group.value]
        alone = evaluate(model, task, tokenizer, as_records(members, task.schema), SIZES)
        assert group.metrics == pytest.approx(alone.metrics, rel=1e-5)
        assert group.intervals.keys() == alone.intervals.keys()
        for name, limits in group.intervals.items():
            assert limits == pytest.approx(alone.intervals[name])
        assert bool(group.intervals) is (group.num_records > 1)  # one record has no other draws


@pytest.mark.catches("one_record_has_an_interval")
def test_one_record_has_metrics_without_an_interval():
    records, task, tokenizer, model = fitted("classification")
    record = {**next(iter(records)), "lang": ""}
    result = evaluate(model, task, tokenizer, as_records([record], task.schema), SIZES, by="lang")
    assert result.intervals == {}
    assert " to " not in (text := str(result).split("wrong, with")[0])
    assert "interval" not in text
    assert re.search(r"^\(empty\) +1 ", text, re.MULTILINE)
    page = " ".join(html for _, html in render_sections(result))
    assert "(empty)" in page
    assert "interval</th>" not in page
    assert json.loads(result.to_json())["groups"][0]["metrics"]["accuracy"].keys() == {"value"}


def test_text_has_numbers_of_six_digits():
    value = {"input": [[1 / 3, 2e-9], [1e9, 7]], "value": [629.1000056610676, True, "a"]}
    assert format_value(value["input"]) == "[[0.333333, 2e-09], [1000000000.0, 7]]"
    assert format_value(value["value"]) == '[629.1, true, "a"]'
    assert format_value({"a": [629.1000056610676]}) == '{"a": [629.1]}'


def test_groups_of_an_unknown_field_are_an_error():
    records, task, tokenizer, model = fitted("classification")
    with pytest.raises(UserError, match=r"by='language'.*no record of records.*input, label"):
        evaluate(model, task, tokenizer, records, SIZES, by="language")


@pytest.mark.catches("worst_records_include_right_ones")
def test_worst_records_are_wrong_and_sorted_by_loss(evaluation):
    worst = evaluation.worst(100)
    assert len(worst) == int((~evaluation.results.correct).sum()) > 2
    losses = [item["loss"] for item in worst]
    assert losses == sorted(losses, reverse=True)
    for item in worst:
        assert item["prediction"] != item["truth"] == item["record"]["label"]
        index = int(item["location"].removeprefix("record "))
        assert evaluation.records[index] == item["record"]


def test_predictions_have_one_row_for_each_record(evaluation):
    rows = list(evaluation.predictions())
    assert [row["index"] for row in rows] == list(range(20))
    accuracy = sum(row["correct"] for row in rows) / 20
    assert accuracy == pytest.approx(evaluation.metrics["accuracy"])
    assert rows[0].keys() == {"index", "prediction", "truth", "correct", "score", "loss"}


def test_evaluation_json_and_report_have_every_part(evaluation, tmp_path):
    values = json.loads(evaluation.to_json())
    assert values["classes"][-2]["name"] == "macro avg"
    assert values["confusion"]["classes"] == ["x", "y", "z"]
    assert np.sum(values["confusion"]["true_by_predicted"]) == 20
    assert values["interval"] == {"level": 0.95, "num_resamples": 1000, "seed": 0}
    assert values["groups"][0]["metrics"]["accuracy"].keys() == {"value", "low", "high"}
    evaluation.write_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Metrics", "Classes", "Confusion matrix", "Metrics by lang", "Calibration",
        "Wrong predictions",
    ]  # fmt: skip
    assert "rows: true class; columns: predicted class" in page
    assert evaluation._repr_html_().count("<h3>") == len(titles)


@pytest.mark.catches("confusion_matrix_is_transposed")
def test_confusion_matrix_has_rows_of_true_classes(evaluation):
    """All are predicted as y: its column alone has records, one row for each true class."""
    html = dict(render_sections(evaluation, "test"))["Confusion matrix (test data)"]
    rows = re.findall("<tr>(.*?)</tr>", html.replace("\n", ""))
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert cells == [
        ["true \\ predicted", "x", "y", "z", "all"],
        ["x", "0", "8", "0", "8"], ["y", "0", "8", "0", "8"], ["z", "0", "4", "0", "4"],
    ]  # fmt: skip


def test_comparison_with_itself_finds_no_difference(evaluation):
    result = with_comparison(evaluation, evaluation, "itself").comparison
    assert list(result.differences) == ["accuracy", "macro_f1", "mcc"]  # losses do not compare
    for item in result.differences.values():
        assert (item.difference, item.low, item.high, item.p_value) == (0, 0, 0, 1)
    assert (result.only_right, result.only_other_right, result.mcnemar_p_value) == (0, 0, 1)


@pytest.mark.catches("comparison_is_not_paired")
def test_comparison_is_paired_over_common_records(evaluation):
    """A model that is right on each record of another, and on three more, is better by these."""
    results = evaluation.results
    first = _with_predictions(results, np.arange(20) < 15)
    second = _with_predictions(results, np.arange(20) < 12)
    task = evaluation.task
    result = compare(task, first, task, second.select(np.arange(1, 20)), Bootstrap(400), "b")
    assert result.num_records == 19
    item = result.differences["accuracy"]
    assert (item.value, item.other_value) == pytest.approx((14 / 19, 11 / 19))
    assert 0 <= item.low < item.difference < item.high < 0.4  # unpaired, it would be from -0.2
    assert (result.only_right, result.only_other_right) == (3, 0)
    assert result.mcnemar_p_value == pytest.approx(0.25)
    text = repr(dataclasses.replace(evaluation, comparison=result))
    assert "against b (paired bootstrap)" in text
    assert "McNemar's exact test" in text


def _with_predictions(results, right):
    truths = results.statistics["truths"]
    predictions = np.where(right, truths, (truths + 1) % 3)
    statistics = {"truths": truths, "predictions": predictions}
    return dataclasses.replace(results, correct=predictions == truths, statistics=statistics)


def test_comparison_of_different_tasks_is_an_error(evaluation):
    records, task, tokenizer, model = fitted("regression")
    baseline = evaluate(model, task, tokenizer, records, SIZES, bootstrap=FEW)
    with pytest.raises(UserError, match="b: a model for regression cannot be compared"):
        with_comparison(evaluation, baseline, "b")


@dataclasses.dataclass(frozen=True)
class Minimal(Task):
    """A task of an extension that has a loss only."""

    name = "minimal"
    models = ("encoder",)


def test_evaluation_of_a_task_without_results_by_record_has_its_metrics_alone():
    records, task, tokenizer, model = fitted("classification")
    minimal = Minimal()
    for name in ("encode", "batcher", "eval_step", "test_step"):
        object.__setattr__(minimal, name, getattr(task, name))
    records = records.with_schema({})
    result = evaluate(model, minimal, tokenizer, records, BatchSettings(24))
    assert list(result.metrics) == ["loss"]
    assert math.isfinite(result.metrics["loss"])
    assert (result.intervals, result.worst(), list(result.predictions())) == ({}, [], [])
    assert "loss" in repr(result)
    with pytest.raises(UserError, match="no results by record"):
        evaluate(model, minimal, tokenizer, records, BatchSettings(24), by="label")
