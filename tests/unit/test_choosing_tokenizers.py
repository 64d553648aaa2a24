"""The tokenizer of a run that names none: letters of single words, else subwords."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from miniformer import TrainConfig, registry
from miniformer.config import UserError
from miniformer.data import fields
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.training.preparation import prepare
from miniformer.training.tokenizers import kind_for
from tests.kit import VERSE

WORDS = sorted(set(VERSE.split()))


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["anna", "bob", " Zoë\n"], "char"),
        (["anna"] * 19 + ["anna maria"], "char"),
        (["anna"] * 9 + ["anna maria"], "bpe"),
        (["東京は日本の首都であり、世界で最も人口の多い都市のひとつでもあるのです。"], "bpe"),
        (["", " ", "anna"], "char"),
        (["", " "], "bpe"),
        ([], "bpe"),
        (None, "bpe"),
        (["anna"] * 1_000 + ["to be or not to be"] * 9_000, "char"),  # only the first are read
    ],
)
def test_single_words_are_read_letter_by_letter(texts, kind):
    assert kind_for(texts) == kind


def prepared(folder, records, task, **settings):
    """A run on records; and what it says of its tokenizer."""
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    console = Console(width=300, file=io.StringIO())
    run = prepare(TrainConfig(train_path=str(path), task=task, **settings), console)
    lines = console.file.getvalue().splitlines()
    return run.tokenizer, next(line for line in lines if line.startswith("tokenizer: "))


def test_words_and_their_sounds_have_a_tokenizer_each(tmp_path):
    records = [{"source": word, "target": " ".join(word.upper())} for word in WORDS]
    tokenizer, said = prepared(tmp_path, records, "seq2seq")
    letters = set("".join(WORDS))
    assert tokenizer.source.vocab_size == len(letters) + 3
    assert len(tokenizer.source.encode(WORDS[0])) == len(WORDS[0])
    assert tokenizer.decode(tokenizer.encode("T O")) == "T O"
    assert said.startswith("tokenizer: of targets bpe, ")
    assert f"; of sources char, {len(letters) + 3} ids" in said


def test_one_tokenizer_serves_two_sides_that_are_alike(tmp_path):
    words = [{"source": word, "target": word[::-1]} for word in WORDS]
    tokenizer, said = prepared(tmp_path, words, "seq2seq")
    assert tokenizer.source is None
    assert said.startswith("tokenizer: char, ")
    texts = [{"source": f"{word} a", "target": f"a {word}"} for word in WORDS]
    tokenizer, said = prepared(tmp_path, texts, "seq2seq")
    assert tokenizer.source is None
    assert said.startswith("tokenizer: bpe, ")


def test_a_tokenizer_that_is_named_is_taken(tmp_path):
    records = [{"source": word, "target": " ".join(word)} for word in WORDS]
    tokenizer, said = prepared(tmp_path, records, "seq2seq", tokenizer="bpe")
    assert tokenizer.source is None
    assert said.startswith("tokenizer: bpe, ")
    tokenizer, said = prepared(tmp_path, records, "seq2seq", source_tokenizer="byte")
    assert said.startswith("tokenizer: of targets bpe, ")
    assert "of sources byte, 258 ids" in said


@dataclasses.dataclass(frozen=True)
class Reversal(Seq2Seq):
    """A task whose sources and targets are made of another field."""

    name = "reversal"

    @property
    def schema(self):
        return {"text": fields.text}

    def texts(self, record):
        yield record["text"]

    def encode(self, records, tokenizer, seq_len):
        pairs = [{"source": r["text"], "target": r["text"][::-1]} for r in records]
        return super().encode(pairs, tokenizer, seq_len)


def test_a_task_of_its_own_fields_has_one_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registered, "task", {"reversal": Reversal})
    records = [{"text": word} for word in WORDS]
    assert prepared(tmp_path, records, "reversal")[1].startswith("tokenizer: char, ")
    with pytest.raises(UserError, match="source_tokenizer is for tasks with sources and targets"):
        prepared(tmp_path, records, "reversal", source_tokenizer="byte")


def test_names_are_classified_by_their_letters(tmp_path):
    records = [{"input": word, "label": len(word) % 2} for word in WORDS]
    assert prepared(tmp_path, records, "classification")[1].startswith("tokenizer: char, ")
    records = [{"input": f"a {word}", "label": len(word) % 2} for word in WORDS]
    assert prepared(tmp_path, records, "classification")[1].startswith("tokenizer: bpe, ")
