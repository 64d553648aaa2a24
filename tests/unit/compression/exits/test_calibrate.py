"""`calibrate-exit`: the file, what predict and evaluate do with it, and refusals."""

import json
import shutil

import pytest
import torch

import miniformer
from miniformer import cli
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.compression.exits.calibrate import calibrate_exit
from miniformer.compression.exits.command import parse_share
from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.exit_policy import exit_outputs
from miniformer.runtime.rounded.linear import RoundedLinear
from miniformer.tasks.classification import Classification
from miniformer.tasks.ordinal_regression import OrdinalRegression
from miniformer.tasks.regression import Regression
from tests.kit import tiny_model

RECORDS = [{"input": f"{n:x} is {n}", "label": "ab"[n % 2]} for n in range(60)]


@pytest.fixture
def directory(tmp_path):
    """A random classifier of three layers."""
    model = tiny_model(
        vocab_size=258, n_layers=3, causal=False, output_dim=2, pooling="mean", max_seq_len=32
    )
    with torch.no_grad():
        model.head.weight.mul_(10)
    task = Classification(classes=["a", "b"], input_kind="text")
    Pipeline(model, Tokenizer.train("byte", []), task=task).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.catches("stored_threshold_is_not_used", "exits_are_calibrated_backwards")
def test_predict_and_evaluate_use_the_threshold(directory, tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    before = load(directory).predict([record["input"] for record in RECORDS])
    arguments = ["calibrate-exit", str(directory), str(data), "--max_loss", "60%"]
    assert cli.main([*arguments, "--confidence", "0.9"]) == 0
    assert "with confidence 90 % at most 60 % of records" in capsys.readouterr().out
    stored = json.loads((directory / "early_exit.json").read_text())
    m = load(directory)
    after = m.predict([record["input"] for record in RECORDS])
    policy = m.model.exit_policy
    assert (policy.threshold, policy.num_records) == (stored["threshold"], 60)
    assert policy.num_layers / 60 == pytest.approx(stored["mean_layers"])
    lost = sum(
        old["label"] == record["label"] != new["label"]
        for old, new, record in zip(before, after, RECORDS, strict=True)
    )
    assert lost / 60 == pytest.approx(stored["loss"])
    assert cli.main(["predict", str(directory), "text"]) == 0
    assert "layers on average for 1 records" in capsys.readouterr().err
    assert cli.main(["evaluate", str(directory), str(data), "--resamples", "0"]) == 0
    assert "layers on average for 60 records" in capsys.readouterr().err
    again = calibrate_exit(directory, RECORDS, max_loss=0.6, confidence=0.9)
    assert again.threshold == stored["threshold"]


@pytest.mark.catches("exits_are_calibrated_in_float32")
def test_exits_are_calibrated_with_the_weights_of_predict(tmp_path, monkeypatch):
    """The inputs of a quantized directory are rounded, which can change exits."""
    model = tiny_model(vocab_size=258, d_model=32, causal=False, output_dim=2, pooling="mean")
    task = Classification(classes=["a", "b"], input_kind="text")
    pipeline = Pipeline(model, Tokenizer.train("byte", []), task=task)
    miniformer.quantize(pipeline, tmp_path / "int8", to="int8")
    monkeypatch.setattr("miniformer.runtime.rounded.model.has_instructions", lambda dtype: True)
    seen = []

    def outputs_of(model, *inputs, **options):
        seen.append(type(model.layers[0].feed_forward.up_proj))
        return exit_outputs(model, *inputs, **options)

    monkeypatch.setattr("miniformer.compression.exits.calibrate.exit_outputs", outputs_of)
    calibrate_exit(tmp_path / "int8", RECORDS, max_loss=0.6, confidence=0.9)
    assert set(seen) == {RoundedLinear}


@pytest.mark.catches("percent_is_a_share")
def test_refusals_write_nothing(directory, tmp_path):
    with pytest.raises(UserError, match=r"has 60 records; a loss of at most 0\.01 .* at least 299"):
        calibrate_exit(directory, RECORDS)
    with pytest.raises(UserError, match="max_loss must be above 0% and below 100%, not 120%"):
        calibrate_exit(directory, RECORDS, max_loss=1.2)
    model = tiny_model(vocab_size=258, causal=False, output_dim=1, pooling="mean", n_layers=2)
    m = Pipeline(model, Tokenizer.train("byte", []), task=Regression(input_kind="text"))
    m.save(tmp_path / "values")
    with pytest.raises(UserError, match="is for models of task classification, not of regression"):
        calibrate_exit(tmp_path / "values", [{"input": "a", "value": 1.0}] * 40, max_loss=0.5)
    assert not (directory / "early_exit.json").exists()
    assert parse_share("max_loss", "2%") == 0.02
    with pytest.raises(UserError, match=r"max_loss must be a share such as 1% or 0\.01, not 'x'"):
        parse_share("max_loss", "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 2.0}, "threshold must be at most 1"),
        ({"threshold": None}, "threshold is missing"),
        ({"thresold": 0.5}, "unknown field 'thresold'"),
        ({"n_layers": 9}, "a classifier of 9 layers, which this model is not"),
        ({"n_layers": [[]] * 2}, "n_layers must be"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(directory, change, message):
    calibrate_exit(directory, RECORDS, max_loss=0.6)
    path = directory / "early_exit.json"
    values = {**json.loads(path.read_text()), **change}
    values = {name: value for name, value in values.items() if value is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"{message}.*; remove the file") as caught:
        load(directory)
    assert "calibrate-exit again" in str(caught.value) or "n_layers" in change
    for text in ("[1", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"early_exit\.json"):
            load(directory)


@pytest.mark.catches("exits_are_of_all_tasks_with_classes")
def test_classes_with_an_order_have_no_exits(directory, tmp_path):
    """Their outputs are cumulative: no softmax of them is a probability."""
    calibrate_exit(directory, RECORDS, max_loss=0.6)
    model = tiny_model(
        vocab_size=258, causal=False, output_dim=1, ordered_outputs=True, pooling="mean", n_layers=3
    )
    task = OrdinalRegression(classes=["a", "b"], input_kind="text")
    Pipeline(model, Tokenizer.train("byte", []), task=task).save(tmp_path / "ordinal")
    with pytest.raises(UserError, match="of task classification, not of ordinal_regression"):
        calibrate_exit(tmp_path / "ordinal", RECORDS, max_loss=0.6)
    shutil.copy(directory / "early_exit.json", tmp_path / "ordinal")
    with pytest.raises(UserError, match="a classifier of 3 layers, which this model is not"):
        load(tmp_path / "ordinal")
