"""`--model`: the kinds of model of a run."""

import io
import json

import pytest
from rich.console import Console

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.setup.prepare import prepare
from tests.kit import write_jsonl

SHAPE = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16}


def prepared(tmp_path, task, **changes):
    path = tmp_path / "data.jsonl"
    if task == "classification":
        rows = [{"input": text, "label": text[0]} for text in ("ab", "ba", "aa", "bb")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        write_jsonl(path, ["some text", "another text"])
    shape = {**SHAPE, **changes.pop("model_config", {})}
    config = TrainConfig(
        train_path=str(path), task=task, tokenizer="byte", model_config=shape, **changes
    )
    return prepare(config, Console(quiet=True))


@pytest.mark.catches("decoder_is_not_causal")
@pytest.mark.parametrize(
    ("task", "model", "causal"),
    [
        ("language_modeling", None, True),
        ("language_modeling", "encoder", True),
        ("language_modeling", "decoder", True),
        ("classification", None, False),
        ("classification", "encoder", False),
        ("classification", "decoder", True),
        ("masked_lm", "encoder", False),
    ],
)
def test_model_setting_decides_causal_attention(task, model, causal, tmp_path):
    run = prepared(tmp_path, task, model=model)
    assert type(run.model).__name__ == "Transformer"
    assert (run.model_config.causal, run.kind) == (causal, "encoder")
    assert run.config.model == model


def test_model_setting_decoder_is_refused_for_unsuitable_tasks(tmp_path):
    with pytest.raises(UserError, match="causal must be false for masked_lm"):
        prepared(tmp_path, "masked_lm", model="decoder")
    with pytest.raises(UserError, match="model=decoder is causal; leave causal out"):
        prepared(tmp_path, "classification", model="decoder", model_config={"causal": False})
    with pytest.raises(UserError, match="task=seq2seq needs model=seq2seq"):
        prepared(tmp_path, "seq2seq", model="decoder")


@pytest.mark.catches("training_data_validates_itself")
@pytest.mark.parametrize("is_same", [True, False])
def test_validation_on_training_data_is_named(tmp_path, is_same):
    (tmp_path / "link.jsonl").symlink_to("data.jsonl")
    write_jsonl(tmp_path / "other.jsonl", ["a text", "another"])
    output, name = io.StringIO(), "link.jsonl" if is_same else "other.jsonl"
    path = write_jsonl(tmp_path / "data.jsonl", ["some text", "another text"])
    config = TrainConfig(
        train_path=[str(path)], val_path=str(tmp_path / name), tokenizer="byte", model_config=SHAPE
    )
    prepare(config, Console(file=output, width=200))
    line = next(x for x in output.getvalue().splitlines() if x.startswith("validation data: "))
    message = "2 records that are training data, too: the metrics say nothing about other records"
    assert (message in line) is is_same
