"""`miniformer inspect`: text, JSON and a page of one input."""

import json

import pytest

from miniformer import Pipeline, cli
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.regression import Regression
from tests.kit import tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "model"
    tokenizer = Tokenizer.train("byte", [])
    Pipeline(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer, LanguageModeling()).save(path)
    return str(path)


@pytest.mark.catches(
    "inspect_prints_no_json", "tokens_of_inspection_are_reversed", "inspect_ignores_top_k"
)
def test_inspect_command_prints_text_or_json_and_writes_a_page(directory, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert cli.main(["inspect", directory, "a cat", "--html", str(page)]) == 0
    assert "decoder of 2 layers x 4 heads" in capsys.readouterr().out
    assert "<h1>" in page.read_text(encoding="utf-8")
    assert cli.main(["inspect", directory, "a cat", "--json", "--top_k", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "".join(report["tokens"]).endswith("a cat")
    assert [len(row) for row in report["lens"][0]] == [2] * len(report["tokens"])


def test_inspect_command_of_vectors(tmp_path, capsys):
    task = Regression(input_kind="features", input_dim=2, target_mean=0.0, target_std=1.0)
    model = tiny_model(input_dim=2, output_dim=1, causal=False)
    Pipeline(model, None, task).save(tmp_path / "model")
    assert cli.main(["inspect", str(tmp_path / "model"), "[[0.5, 1], [1, 2]]"]) == 0
    assert "regression: 2 positions; encoder of 2 layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--target", "b"], "a target is for seq2seq models"),
        (["a" * 99], "shorten it, or truncate it"),
        (["a", "--html", "."], "html: . is a directory; name a file"),
    ],
)
def test_inspect_command_refuses(directory, arguments, message, capsys):
    assert cli.main(["inspect", directory, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
