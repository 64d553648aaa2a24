"""The examples of docs/inspection.md run as printed."""

import shlex

import pytest

from miniformer import Pipeline, Seq2SeqTransformer, cli
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.contract.test_documents import blocks
from tests.kit import tiny_model


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The model directories that the page names."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train("byte", [])
    size = tokenizer.vocab_size
    model = Pipeline(tiny_model(vocab_size=size), tokenizer, LanguageModeling())
    model.save("runs/demo/best")
    model.save("runs/my-model")
    translator = tiny_model(model=Seq2SeqTransformer, vocab_size=size, causal=False)
    Pipeline(translator, tokenizer, Seq2Seq()).save("runs/my-translator")


def test_commands_of_the_inspection_page_run(models, capsys):
    (block,) = blocks("docs/inspection.md", "bash")
    for line in block.splitlines():
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
        assert ('"tokens"' if "--json" in line else "positions; ") in capsys.readouterr().out


def test_example_of_the_inspection_page_runs(models, tmp_path):
    (code,) = blocks("docs/inspection.md", "python")
    exec(code, {})
    assert len([*tmp_path.glob("*.svg"), *tmp_path.glob("*.png")]) == 4
