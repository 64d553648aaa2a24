"""Constrained decoding, checked with Python's `re` and `json`."""

import importlib.util
import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import ConfigError, GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE, tiny_model

TOKENIZERS = {
    "bpe": Tokenizer.train("bpe", [VERSE, '{"name": "cat", "age": 3}', "yes no maybe"] * 3, 330),
    "byte": Tokenizer.train("byte", []),
    "char": Tokenizer.train("char", [VERSE, "0123456789{}[]\":,-é"]),
}  # fmt: skip
REGEXES = ["(a|bc)+", "[0-9]{3}-[0-9]{4}", "the (cat|dog) s[aou]t\\.?", "é{2,3}", "a*", "yes"]


def pipeline(kind="bpe", seed=0, task=None, **changes):
    tokenizer = TOKENIZERS[kind]
    model = tiny_model(seed, vocab_size=tokenizer.vocab_size + 3, max_seq_len=200, **changes)
    generation = GenerationConfig(max_new_tokens=60, eos_id=tokenizer.eos_id)
    return Pipeline(model, tokenizer, task=task or LanguageModeling(), generation=generation)


@pytest.mark.catches("answer_ends_before_it_is_whole", "one_byte_is_taken_for_another")
@settings(max_examples=30)
@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(REGEXES), st.integers(0, 20))
def test_constraint_regex_is_matched(kind, regex, seed):
    m = pipeline(kind, seed)
    ending = {"frequency_penalty": 1.0}  # prevents endless repetition
    for options in ({"temperature": 0.0}, {"seed": seed, "num_return_sequences": 3}):
        result = m.generate(["The", "Nobody knew"], regex=regex, **options, **ending)
        for texts in result:
            for text in [texts] if isinstance(texts, str) else texts:
                assert re.fullmatch(regex, text), (regex, text)


def test_constraint_choices_are_all_possible_and_nothing_else():
    m, choices = pipeline(), ["yes", "no", "maybe", 'he said "no"', "yes, but"]
    result = m.generate("The", choices=choices, num_return_sequences=200, seed=0)
    assert set(result) == set(choices)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["fish", "milk"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_constraint_json_schema_is_followed(kind):
    m = pipeline(kind)
    for text in m.generate("The", json_schema=SCHEMA, num_return_sequences=20, seed=1,
                           max_new_tokens=150):  # fmt: skip
        result = json.loads(text)
        assert set(result) == {"name", "age", "likes"}
        assert len(result["name"]) <= 8
        assert 0 <= result["age"] <= 150
        assert isinstance(result["age"], int)
        assert set(result["likes"]) <= {"fish", "milk"}


def test_constraint_holds_in_beam_search_streams_seq2seq_and_speculation():
    m, regex = pipeline("byte"), "[0-9]{3}-[0-9]{4}"
    for text in m.generate("The", regex=regex, num_beams=4, num_return_sequences=4):
        assert re.fullmatch(regex, text)
    greedy = m.generate("The", regex=regex, temperature=0.0)
    assert "".join(m.stream("The", regex=regex, temperature=0.0)) == greedy
    for draft in ("lookup", pipeline("byte", seed=4)):
        assert m.generate("The", regex=regex, temperature=0.0, draft=draft) == greedy
    translator = pipeline("byte", task=Seq2Seq(), model=Seq2SeqTransformer, causal=False)
    assert re.fullmatch(regex, translator.generate("a source", regex=regex))


def test_constraint_selects_the_likeliest_allowed_token():
    """Greedy reference: the most likely token of those that can still lead to a choice."""
    m, choices = pipeline("byte"), ["cat", "cow", "dog"]
    ids = m.task.encode_prompts(["The"], m.tokenizer)[0]
    text = ""
    while text not in choices:
        prefixes = {c[len(text)] for c in choices if c.startswith(text)}
        logits = m.model(torch.tensor([ids + m.tokenizer.encode(text)]))[0, -1].detach()
        text += max(prefixes, key=lambda c: float(logits[m.tokenizer.encode(c)[0]]))
    assert m.generate("The", choices=choices, temperature=0.0) == text


@pytest.mark.catches("cut_answer_passes_for_whole")
def test_constraint_rejects_an_incomplete_answer():
    m = pipeline("byte")
    message = "did not complete regex within max_new_tokens=3; raise max_new_tokens"
    with pytest.raises(UserError, match=message):
        m.generate("The", regex="[0-9]{5}", max_new_tokens=3)
    with pytest.raises(UserError, match=message):
        list(m.stream("The", regex="[0-9]{5}", max_new_tokens=3))
    assert m.generate("The", regex="[0-9]{3}", max_new_tokens=3).isdigit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "(a"}, "regex: .*unclosed group"),
        ({"json_schema": {"type": "nix"}}, "json_schema: .*nix"),
        ({"choices": []}, "choices must hold strings of one character or more"),
        ({"regex": "a", "choices": ["a"]}, "regex and choices are both constraints"),
        (
            {"regex": "a", "stop_strings": ["b"]},
            "regex determines where an answer ends; leave stop_strings out",
        ),
        ({"regex": "a", "eos_id": None}, "regex needs eos_id, the EOS token"),
    ],
)
def test_constraint_rejects_invalid_definitions(options, message):
    with pytest.raises((UserError, ConfigError), match=message):
        pipeline("byte").generate("The", **options)


def test_constraint_needs_a_text_tokenizer_and_the_package(monkeypatch):
    m = pipeline("byte")
    m.tokenizer = Tokenizer.train("wordpiece", [VERSE], 200)
    with pytest.raises(UserError, match=r"tokens of fixed text.* \(WordPiece\)"):
        m.generate("The", regex="a")
    with pytest.raises(UserError, match="regex needs a tokenizer; use a Pipeline"):
        m.model.generate([[1]], 3, regex="a")
    m = pipeline("byte")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "miniformer\[constrain\]"'):
        m.generate("The", regex="a")
