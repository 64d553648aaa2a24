"""Candidates of trials: what is tried for which data; never a given setting."""

import json

import pytest
from rich.console import Console

from miniformer.train_config import TrainConfig
from miniformer.training.setup.prepare import prepare
from miniformer.training.trials.candidates import Candidate, candidate_groups

SHAPE = {"max_seq_len": 16}
ROWS = {
    "classification": [{"input": f"{a} cat sat", "label": a} for a in "ab"] * 15,
    "vectors": [{"input": [[1.0, x], [2.0, x]], "label": x % 2} for x in range(30)],
    "seq2seq": [{"source": "a long cat", "target": "the cat sat"}] * 30,
    "language_modeling": [{"text": "the cat sat"}] * 30,
}


def groups(tmp_path, task, mode="full", **settings):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    config = TrainConfig(
        train_path=str(path), val_share=0.0, wide_head="off",
        task="classification" if task == "vectors" else task,
        model_config={**SHAPE, **settings.pop("model_config", {})}, **settings,
    )  # fmt: skip
    run = prepare(config, Console(quiet=True))
    return [[item.settings for item in group] for group in candidate_groups(run, config, mode)]


def test_candidates_of_each_kind_of_data(tmp_path):
    assert groups(tmp_path, "classification", "quick") == [
        [{}, {"tokenizer": "char"}, {"tokenizer": "word"}]
    ]
    assert groups(tmp_path, "vectors", "quick") == [[{}, {"model_config.pooling": "mean+max"}]]
    assert groups(tmp_path, "language_modeling", "quick") == []
    assert groups(tmp_path, "language_modeling") == [[{}, {"model_size": "small"}]]
    assert len(groups(tmp_path, "seq2seq")) == 2
    assert len(groups(tmp_path, "classification")) == 3


@pytest.mark.catches("given_settings_are_tried")
@pytest.mark.parametrize(
    ("task", "given", "name"),
    [
        ("classification", {"tokenizer": "bpe"}, "tokenizer"),
        ("classification", {"model_config": {"vocab_size": 600}}, "tokenizer"),
        ("classification", {"model_config": {"pooling": "mean"}}, "model_config.pooling"),
        ("classification", {"model_config": {"dropout": 0.1}}, "model_config.dropout"),
        ("seq2seq", {"tokenizer": "bpe"}, "tokenizer"),
        ("seq2seq", {"source_tokenizer": "char"}, "tokenizer"),
        ("seq2seq", {"model_size": "tiny"}, "model_size"),
        ("seq2seq", {"model_config": {"d_model": 32}}, "model_size"),
    ],
)
def test_given_settings_are_never_tried(task, given, name, tmp_path):
    names = {x for group in groups(tmp_path, task) for item in group for x in item}
    assert name in names
    names = {x for group in groups(tmp_path, task, **given) for item in group for x in item}
    assert name not in names


def test_candidate_sets_fields_of_configs_in_a_config():
    config = TrainConfig(train_path="x", model_config={"d_model": 32})
    config = Candidate({"model_config.pooling": "max", "tokenizer": "char"}).apply(config)
    assert config.model_config == {"d_model": 32, "pooling": "max"}
    assert config.tokenizer == "char"
