"""Automatic choice of tokenizers: single words as sources get a char tokenizer."""

import dataclasses
import io
import json
import random

import pytest
from rich.console import Console

from miniformer import TrainConfig, registry
from miniformer.config import UserError
from miniformer.config.train_settings import DataSettings, ModelSettings
from miniformer.data.reading import schema
from miniformer.data.reading.records import as_records
from miniformer.tasks.classification import Classification
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.training.setup.prepare import prepare
from miniformer.training.setup.tokenizers import make_tokenizer
from miniformer.training.tuning.tokenizer_defaults import mostly_single_words, resolve_tokenizer
from tests.kit import VERSE

WORDS = sorted(set(VERSE.split()))
SOUNDS = [{"source": word, "target": " ".join(word.upper())} for word in WORDS]


@pytest.mark.catches("few_phrases_make_words_of_none")
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["anna", "bob", " Zoë\n"], True),
        (["anna"] * 19 + ["anna maria"], True),
        (["anna"] * 9 + ["anna maria"], False),
        (["x" * 32], True),
        (["x" * 33], False),  # as languages without spaces have sentences
        (["", " ", "anna"], True),
        (["", " "], False),
        ([], False),
        (["anna"] * 1_000 + ["to be or not to be"] * 9_000, True),
    ],
)
def test_mostly_single_words_judges_the_first_texts(texts, expected):
    assert mostly_single_words(texts) is expected


def prepared(folder, records, task="seq2seq", **settings):
    """Tokenizer of a prepared run on records, and its console message."""
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    console = Console(width=300, file=io.StringIO())
    run = prepare(TrainConfig(train_path=str(path), task=task, **settings), console)
    lines = console.file.getvalue().splitlines()
    return run.tokenizer, next(line for line in lines if line.startswith("tokenizer: "))


@pytest.mark.catches("sources_share_the_tokenizer_of_targets")
def test_single_words_and_their_targets_have_separate_tokenizers(tmp_path):
    tokenizer, output = prepared(tmp_path, SOUNDS)
    letters = set("".join(WORDS))
    assert tokenizer.separate_source_tokenizer.vocab_size == len(letters) + 3
    assert len(tokenizer.separate_source_tokenizer.encode(WORDS[0])) == len(WORDS[0])
    assert tokenizer.decode(tokenizer.encode("T O")) == "T O"
    assert output.startswith("tokenizer: of targets bpe, ")
    assert f"; of sources char, {len(letters) + 3} ids" in output


@pytest.mark.catches("targets_with_spaces_are_characters")
@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (lambda word: {"source": word, "target": word[::-1]}, "char"),
        (lambda word: {"source": f"{word} a", "target": f"a {word}"}, "bpe"),
        (lambda word: {"source": f"{word} a", "target": word}, "char"),
    ],
)
def test_tokenizer_of_seq2seq_is_char_for_targets_without_spaces(tmp_path, record, kind):
    tokenizer, output = prepared(tmp_path, [record(word) for word in WORDS])
    assert tokenizer.separate_source_tokenizer is None
    assert output.startswith(f"tokenizer: {kind}, ")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ACGTTGCA", "char"),
        ("CC(=O)Oc1ccccc1", "char"),
        ("plain words", "bpe"),
        ("".join(map(chr, range(0x4E00, 0x4E00 + 300))), "bpe"),  # a script without spaces
    ],
)
def test_tokenizer_of_inputs_is_char_for_symbols_without_spaces(text, kind):
    records = as_records([{"input": text, "label": n % 2} for n in range(4)], {})
    setting = resolve_tokenizer(DataSettings(), ModelSettings(), Classification(), records)
    assert ("bpe" if setting is None else setting.value) == kind
    given = DataSettings(tokenizer="bpe")
    assert resolve_tokenizer(given, ModelSettings(), Classification(), records) is None


@pytest.mark.catches("named_tokenizer_is_not_heard")
def test_tokenizer_settings_of_the_user_are_used(tmp_path):
    for name in ("bpe", "char"):
        tokenizer, output = prepared(tmp_path, SOUNDS, tokenizer=name)
        assert tokenizer.separate_source_tokenizer is None
        assert output.startswith(f"tokenizer: {name}, ")
    tokenizer, output = prepared(tmp_path, SOUNDS, source_tokenizer="byte")
    assert output.startswith("tokenizer: of targets bpe, ")
    assert "of sources byte, 258 ids" in output
    tokenizer, output = prepared(tmp_path, SOUNDS, task_config={"bpe_dropout": 0.1})
    assert tokenizer.separate_source_tokenizer is None, "letters have no merges to be undone"
    with pytest.raises(UserError, match="source_vocab_size=50 needs a separate source tokenizer"):
        prepared(tmp_path, SOUNDS, model_config={"source_vocab_size": 50})


def test_tokenizer_of_a_stream_must_be_named():
    config = TrainConfig(train_path="a.jsonl", task="seq2seq", streaming=True, max_steps=9)
    with pytest.raises(UserError, match=r"with streaming.*; set tokenizer to byte"):
        make_tokenizer(config, Seq2Seq(), None)


@dataclasses.dataclass(frozen=True)
class Reversal(Seq2Seq):
    """A task that derives sources and targets from another field."""

    name = "reversal"

    @property
    def schema(self):
        return {"text": schema.check_text}

    def texts(self, record):
        yield record["text"]

    def encode(self, records, tokenizer, seq_len):
        pairs = [{"source": r["text"], "target": r["text"][::-1]} for r in records]
        return super().encode(pairs, tokenizer, seq_len)


@dataclasses.dataclass(frozen=True)
class Shout(Seq2Seq):
    """A task with upper-case sources."""

    name = "shout"

    def texts(self, record):
        yield record["source"].upper()
        yield record["target"]


def test_tokenizer_of_a_task_with_other_fields_is_shared(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registered, "task", {"reversal": Reversal})
    records = [{"text": word} for word in WORDS]
    assert prepared(tmp_path, records, "reversal")[1].startswith("tokenizer: bpe, ")
    with pytest.raises(UserError, match="source_tokenizer is for tasks with sources and targets"):
        prepared(tmp_path, records, "reversal", source_tokenizer="byte")


def test_tokenizer_is_trained_on_the_texts_of_the_task(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registered, "task", {"shout": Shout})
    tokenizer, _ = prepared(tmp_path, SOUNDS, "shout")
    assert (
        tokenizer.separate_source_tokenizer.decode(tokenizer.separate_source_tokenizer.encode("TO"))
        == "TO"
    )


def test_tokenizer_of_pairs_keeps_a_large_vocabulary(tmp_path):
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefghijkl  ", k=200)) for _ in range(200)]
    tokenizer, _ = prepared(tmp_path, [{"source": text, "target": text} for text in texts])
    assert tokenizer.vocab_size > 1_000, "of 80,000 letters, whose root is 283"
