"""`--model`: the kinds of model of a run."""

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
