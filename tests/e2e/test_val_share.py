"""Runs without val_path: a part of the training data is set aside."""

import io
import json
import re

import pytest
from rich.console import Console

import miniformer
from miniformer import TrainConfig
from miniformer.config import UserError
from miniformer.training.resume.verify import weights_digest
from miniformer.training.run import train
from tests.kit import VERSE, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}


def config(folder, name, **changes):
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "task": "classification", "max_steps": 6,
        "tokenizer": "word", "model_config": MODEL, "batch_size": 8, "logger": "none",
        "val_check_interval": 2, "precision": "float32", "accelerator": "cpu",
        "work_dir": str(folder / "runs"), "experiment_name": name, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    records = [{"input": f"text{i} is {i}", "label": f"class {i % 2}"} for i in range(50)]
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


def run(config):
    output = io.StringIO()
    result = train(config, console=Console(file=output, soft_wrap=True))
    return result, output.getvalue()


@pytest.mark.catches("tokenizer_has_read_the_validation_data")
@pytest.mark.catches("report_shows_training_data")
def test_part_of_the_training_data_is_set_aside(folder):
    result, output = run(config(folder, "default"))
    assert "training data: 40 records" in output
    assert "validation data: 10 records set aside from train_path (--val_share 0: none)" in output
    assert "val_share: 0.2 (no val_path: a part of train_path is set aside)" in output
    assert "val_accuracy" in result.metrics
    tokenizer = json.loads((result.model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    assert sum(name.startswith("text") for name in vocabulary) == 40
    report = (result.folder / "report.html").read_text()
    assert "Classes (validation data)" in report
    weighted = re.search(r"weighted.*?</tr>", report, re.DOTALL)
    assert weighted is not None
    assert ">10<" in weighted[0], "the support of all classes"
    settings = json.loads((result.folder / "train_config.json").read_text())
    assert settings["val_share"] == 0.2


def test_val_share_of_zero_turns_validation_off(folder):
    result, output = run(config(folder, "off", val_share=0, val_check_interval=None))
    assert "training data: 50 records" in output
    assert "no validation: only the training loss is reported" in output
    assert result.model.name == "last"


def test_resumed_run_has_the_same_part_set_aside(folder):
    uninterrupted, _ = run(config(folder, "uninterrupted", max_steps=6, scheduler="none"))
    first, _ = run(config(folder, "resumed", max_steps=3, scheduler="none"))
    again, output = run(TrainConfig(resume=str(first.folder), max_steps=6))
    assert "validation data: 10 records set aside" in output
    digests = [
        weights_digest(miniformer.load(result.folder / "last").model.state_dict())
        for result in (uninterrupted, again)
    ]
    assert digests[0] == digests[1]
    for changes in ({"val_share": 0.5}, {"val_path": str(folder / "train.jsonl")}):
        with pytest.raises(UserError, match=r"resume: .*val_share"):
            run(TrainConfig(resume=str(first.folder), **changes))


def test_run_of_an_earlier_version_resumes_with_all_of_its_data(folder):
    first, _ = run(config(folder, "earlier", val_share=0, val_check_interval=None, max_steps=3))
    path = first.folder / "train_config.json"
    settings = json.loads(path.read_text())
    del settings["val_share"]
    path.write_text(json.dumps(settings))
    _, output = run(TrainConfig(resume=str(first.folder), max_steps=5))
    assert "training data: 50 records" in output


def test_data_that_cannot_be_divided_is_trained_on(folder):
    write_jsonl(folder / "same.jsonl", [VERSE] * 30)
    changes = {"task": "language_modeling", "tokenizer": "byte", "val_check_interval": None}
    path = str(folder / "same.jsonl")
    _, output = run(config(folder, "same", train_path=path, max_steps=2, **changes))
    assert "val_share: 0.0 (the records have too few different inputs" in output
    assert "training data: 30 records" in output
    with pytest.raises(UserError, match=r"val_share=0\.1: the records have too few different"):
        run(config(folder, "same", train_path=path, val_share=0.1, **changes))
