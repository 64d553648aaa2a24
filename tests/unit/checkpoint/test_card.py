"""The card that a saved pipeline gets."""

import pytest

from miniformer import Pipeline, Seq2SeqTransformer, Transformer, load
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.doctor.checks.card import check_card
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import tiny_model

CASES = [
    (LanguageModeling(), Transformer, {}),
    (Classification(classes=["a", "b"], input_kind="text"), Transformer,
     {"causal": False, "output_dim": 2}),
    (Seq2Seq(), Seq2SeqTransformer, {"causal": False}),
]  # fmt: skip


@pytest.mark.catches("default_card_says_nothing")
@pytest.mark.parametrize(("task", "kind", "fields"), CASES, ids=["lm", "labels", "seq2seq"])
def test_default_card_passes_the_check_of_doctor(task, kind, fields, tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(model=kind, vocab_size=tokenizer.vocab_size, **fields)
    Pipeline(model, tokenizer, task).save(tmp_path / "model")
    assert check_card(tmp_path / "model", model) == []
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    size = sum(parameter.numel() for parameter in model.parameters())
    name = task.name.replace("_", " ")
    assert f"# Model for {name}" in card
    assert f"for {name}, {size:,} parameters: 2 " in card
    assert "license are not stated" in card


def test_card_of_a_loaded_directory_stays(tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    Pipeline(model, tokenizer, LanguageModeling()).save(tmp_path / "first")
    (tmp_path / "first" / "README.md").write_text("# Mine\n")
    load(tmp_path / "first").save(tmp_path / "second")
    assert (tmp_path / "second" / "README.md").read_text() == "# Mine\n"
