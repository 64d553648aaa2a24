"""Compression of a classifier with exits computes with all of its layers."""

import json

import pytest
import torch

import miniformer
from miniformer import Pipeline, Tokenizer, cli
from miniformer.compression.exits.calibrate import calibrate_exit
from miniformer.compression.source import read_source, relative_change
from miniformer.config import UserError
from miniformer.model.exit_policy import ExitPolicy
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

RECORDS = [{"input": f"{n:x} is {n}", "label": "ab"[n % 2]} for n in range(40)]
FURTHER = [{"input": f"{n:x} is {n}", "label": "ab"[n % 2]} for n in range(100, 140)]


@pytest.fixture
def classifier():
    """A classifier whose records all leave after the first of three layers."""
    sizes = {"vocab_size": 258, "d_model": 32, "n_layers": 3, "output_dim": 2}
    model = tiny_model(causal=False, pooling="mean", **sizes)
    model.exit_policy = ExitPolicy(0.0)
    task = Classification(classes=["a", "b"], input_kind="text")
    return Pipeline(model, Tokenizer.train("byte", []), task=task)


@pytest.mark.catches("source_keeps_its_exits")
def test_losses_and_sensitivities_are_those_of_all_layers(classifier, tmp_path):
    early = classifier.evaluate(RECORDS, num_resamples=0).metrics["loss"]
    policy, classifier.model.exit_policy = classifier.model.exit_policy, None
    full = classifier.evaluate(RECORDS, num_resamples=0).metrics["loss"]
    assert early != pytest.approx(full)
    classifier.model.exit_policy = policy
    result = miniformer.quantize(
        classifier, tmp_path / "q", to="int4", data=RECORDS, budget=0.5, calibrate=FURTHER
    )
    assert result.losses[0] == pytest.approx(full)
    last = [row for row in result.table if row.name.startswith("layers.2.")]
    assert all(row.sensitivity != 0 for row in last)
    assert result.losses[1] <= 1.5 * full
    pruned = miniformer.prune(classifier, tmp_path / "p", remove="heads=0.5,ffn=0.5", data=RECORDS)
    assert pruned.losses[0] == pytest.approx(full)
    assert classifier.model.exit_policy is policy


def test_a_model_without_exits_is_used_as_it_is(classifier):
    classifier.model.exit_policy = None
    assert read_source(classifier, "prune") is classifier
    assert read_source(classifier.model, "prune") is classifier.model
    with pytest.raises(UserError, match="prune takes a Pipeline, a model or a model directory"):
        read_source(torch.nn.Linear(2, 2), "prune")


@pytest.mark.catches("records_need_no_tokenizer")
def test_a_model_without_a_tokenizer_reads_no_records(tmp_path):
    pipeline = Pipeline(tiny_model(), None, LanguageModeling())
    records, out = [{"text": "a b c"}] * 40, tmp_path / "out"
    for name in ("data", "calibrate", "heal"):
        with pytest.raises(UserError, match=f"{name}: the model was imported without a tokenizer"):
            miniformer.prune(pipeline, out, remove="ffn=0.5", **{name: records})
    with pytest.raises(UserError, match=r"calibrate: the model was imported without a tokenizer"):
        miniformer.quantize(pipeline, out, to="int8", calibrate=records)
    assert not out.exists()
    assert miniformer.prune(pipeline, out, remove="ffn=0.5").losses is None


@pytest.mark.catches("change_of_a_loss_is_divided_by_its_sign")
@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(2.0, 3.0, "+50.000"), (-2.0, -1.0, "+50.000"), (0.0, 0.0, "+0.000"), (0.0, 0.5, "+inf")],
)
def test_the_change_of_a_loss(before, after, change):
    assert f"{100 * relative_change(before, after):+.3f}" == change


def test_a_loss_of_zero_may_rise_to_a_loss(classifier, tmp_path):
    """Far from the boundary, the cross-entropy of float32 is 0."""
    classifier.model.exit_policy = None
    records = [{**record, "label": "a"} for record in RECORDS]
    with torch.no_grad():
        classifier.model.head.weight.zero_()
        classifier.model.head.bias.copy_(torch.tensor([200.0, -200.0]))
    result = miniformer.quantize(classifier, tmp_path / "q", to="int4", data=records, budget=0.1)
    assert result.losses == (0.0, 0.0)
    assert "(+0.000 %)" in str(result)


@pytest.mark.catches("columns_of_compression_are_those_of_training")
def test_data_may_have_other_columns(classifier, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    rows = [{"body": record["input"], "class": record["label"]} for record in RECORDS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    classifier.model.exit_policy = None
    loss = classifier.evaluate(RECORDS, num_resamples=0).metrics["loss"]
    classifier.save(tmp_path / "m")
    flags = [str(data), "--input_field", "body", "--label_field", "class"]
    quantize = [
        "quantize",
        str(tmp_path / "m"),
        str(tmp_path / "q"),
        "--to",
        "int8",
        "--no-compare",
    ]
    assert cli.main([*quantize, "--calibrate", str(data), "--data", *flags]) == 0
    assert f"loss: {loss:.5f} before" in capsys.readouterr().out
    files = [(tmp_path / name / "data.json").read_bytes() for name in "mq"]
    assert files[0] == files[1]
    prune = ["prune", str(tmp_path / "m"), str(tmp_path / "p"), "--remove", "layers=1"]
    assert cli.main([*prune, "--no-compare", "--data", *flags]) == 0
    assert f"loss: {loss:.5f} before" in capsys.readouterr().out
    assert files[0] == (tmp_path / "p" / "data.json").read_bytes()
    assert cli.main(["calibrate-exit", str(tmp_path / "m"), *flags, "--max_loss", "60%"]) == 0
    assert "of these 40 records" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown field 'inputfield'"):
        calibrate_exit(tmp_path / "m", data, max_loss=0.6, inputfield="body")
    for call, options in (
        (miniformer.quantize, {"to": "int8"}),
        (miniformer.prune, {"sparsity": 0.5}),
    ):
        for model, message in (
            (classifier, "unknown field 'grop'"),
            (classifier.model, "grop needs a"),
        ):
            with pytest.raises(UserError, match=message):
                call(model, tmp_path / "no", grop=64, **options)
