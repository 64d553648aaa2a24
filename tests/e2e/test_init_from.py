"""Runs with `init_from`, by the command line: import, train, export."""

import json
from pathlib import Path

import pytest
import torch

import miniformer
from miniformer import cli, trainer
from miniformer.config import TransformerConfig
from miniformer.config.architectures import architecture_config
from tests.kit import VERSE, write_jsonl

SIZES = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24, "max_seq_len": 64}


def theirs(folder, name, **fields):
    """A Hugging Face model directory with a tokenizer."""
    torch.manual_seed(7)  # not the seed of a run
    tokenizer = miniformer.Tokenizer.train("byte", [VERSE])
    values = architecture_config(name, **SIZES, vocab_size=tokenizer.vocab_size, **fields)
    model = miniformer.Transformer(TransformerConfig(**values))
    miniformer.to_hf(model, folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def write_pairs(path):
    records = [{"input": [f"a {i} c", f"b {i} d"], "label": i % 2} for i in range(8)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def run(*arguments):
    return trainer.main([*map(str, arguments), "--logger", "none"])


@pytest.mark.catches("run_begins_with_random_weights")
def test_init_from_imported_encoder_trains_and_exports_a_classifier(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "bert", "bert")
    assert cli.main(["import", "bert", "ours"]) == 0
    records = [{"input": f"{word} {i}", "label": word} for i in range(8) for word in ("a", "b")]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "train.jsonl").write_text(lines)
    arguments = ["--task", "classification", "--train_path", "train.jsonl", "--init_from", "ours"]
    assert run(*arguments, "--max_steps", 1, "--lr", 0) == 0
    out = capsys.readouterr().out
    assert "weights: from ours; newly initialized: head.weight, head.bias" in out.replace("\n", " ")
    trained = miniformer.load("runs/classification/last")
    before, after = (m.model.state_dict() for m in (miniformer.load("ours"), trained))
    shared = [name for name in after if name in before and not name.startswith("head.")]
    assert len(shared) > 20
    assert all(torch.equal(before[name], after[name]) for name in shared)
    assert trained.predict(["a 1"])[0]["label"] in ("a", "b")
    assert cli.main(["export", "runs/classification/last", "home"]) == 0
    config = json.loads((tmp_path / "home" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "a", "1": "b"}


def test_init_from_imported_language_model_continues_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "llama", "llama")
    assert cli.main(["import", "llama", "ours"]) == 0
    write_jsonl(tmp_path / "train.jsonl", [VERSE * 4])
    arguments = ["--train_path", "train.jsonl", "--init_from", "ours", "--seq_len", 32]
    assert run(*arguments, "--max_steps", 2) == 0
    settings = json.loads(Path("runs/language_modeling/train_config.json").read_text())
    assert settings["lr"] == pytest.approx(5e-4)  # a tenth of the default for random weights
    assert cli.main(["export", "runs/language_modeling/last", "home"]) == 0
    exported = json.loads((tmp_path / "home" / "config.json").read_text())
    assert exported["architectures"] == ["LlamaForCausalLM"]


def test_init_from_keeps_the_token_types_of_pairs(tmp_path, monkeypatch):
    """Shared tokens are marked only if the first model marks them."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    model = json.dumps({"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32})
    shared = ["--train_path", "pairs.jsonl", "--max_steps", 1]
    from_scratch = ["--tokenizer", "byte", "--model_config", model]
    for task, more, types in (
        ("masked_lm", ["--task_config", '{"field": "input"}'], 2),
        ("classification", [], 4),
    ):
        assert run("--task", task, *more, *shared, *from_scratch) == 0
        first = f"runs/{task}/last"
        arguments = ["--task", "classification", "--init_from", first, "--experiment_name", "next"]
        assert run(*arguments, *shared) == 0
        after = sorted(Path("runs").glob("next*"))[-1] / "last"
        for folder in (first, after):
            assert json.loads((Path(folder) / "config.json").read_text())["token_types"] == types
        pipeline = miniformer.load(after)
        assert pipeline.task.shared_token_types == (types == 4)
        assert len(pipeline.predict([["a 1", "b 1"]])) == 1


def test_export_documents_shared_token_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    values = architecture_config("bert", **SIZES, vocab_size=258)
    for name in ("token_types", "vocab_size", "head_bias"):  # set by the data
        del values[name]
    values |= {"pooling": "first", "head": "dense_tanh"}
    arguments = ["--task", "classification", "--train_path", "pairs.jsonl", "--tokenizer", "byte"]
    assert run(*arguments, "--max_steps", 1, "--model_config", json.dumps(values)) == 0
    miniformer.to_hf("runs/classification/last", "home")
    assert "tokens that both texts of a pair contain" in Path("home/README.md").read_text()


def test_init_from_model_without_a_tokenizer_uses_the_given_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (theirs(tmp_path / "llama", "llama") / "tokenizer.json").rename("tokenizer.json")
    miniformer.import_hf("llama", "ours")
    write_jsonl(tmp_path / "train.jsonl", [VERSE * 4])
    arguments = ["--train_path", "train.jsonl", "--max_steps", 1, "--init_from", "ours"]
    assert run(*arguments) == 2
    assert "ours has no tokenizer.json; set tokenizer to the one" in capsys.readouterr().err
    assert run(*arguments, "--tokenizer", "tokenizer.json") == 0
    assert miniformer.load("runs/language_modeling/last").tokenizer.encode("ab") == [66, 67]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init_from", "none"], "none: no such model directory"),
        (["--init_from", "llama"], "is a Hugging Face model; convert it with"),
        (["--init_from", "ours", "--tokenizer", "char"], "tokenizer has no effect with init_from"),
        (["--init_from", "ours", "--model", "seq2seq"], "needs a Seq2SeqTransformer"),
        (
            ["--init_from", "ours", "--model_config", '{"d_ff": 32}'],
            "weight layers.0.feed_forward.gate_proj.weight of this run's model is [32, 16]",
        ),
    ],
)
def test_init_from_incompatible_model_is_refused(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "llama", "llama")
    miniformer.import_hf("llama", "ours")
    write_jsonl(tmp_path / "train.jsonl", [VERSE * 4])
    assert run("--train_path", "train.jsonl", "--max_steps", 1, *arguments) == 2
    assert message in capsys.readouterr().err
