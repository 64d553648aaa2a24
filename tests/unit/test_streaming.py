"""Streams: whole characters only, stop strings, and in the end the whole answer."""

import asyncio
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizer import Tokenizer
from miniformer.generation.pieces import Pieces
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE, tiny_model

KINDS = {
    kind: Tokenizer.train(kind, [VERSE, "naïve 😀 , . ' don't"] * 3, size)
    for kind, size in (("bpe", 320), ("byte", None), ("char", None), ("wordpiece", 200))
}


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.integers(0, 199), max_size=30),
    st.lists(st.text("ab th.e,", min_size=1, max_size=3), max_size=2),
)
def test_pieces_are_the_text_up_to_the_stop_and_nothing_is_taken_back(kind, ids, stops):
    """For any tokens whatever, sensible text or not."""
    tokenizer = KINDS[kind]
    ids = [i % tokenizer.vocab_size for i in ids]
    pieces = Pieces(tokenizer.decode, stops, rewrites=tokenizer.rewrites)
    found = [pieces.add(token) for token in ids]
    found.append(pieces.end())
    whole = tokenizer.decode(ids)
    cuts = [whole.index(stop) for stop in stops if stop in whole]
    assert "".join(found) == whole[: min(cuts, default=None)]


@given(st.text("ab ,", max_size=12))
def test_what_a_decoder_may_take_back_is_held(text):
    tokenizer = Tokenizer.train("byte", ["a"], None)
    parts = [tokenizer.backend.decoder, decoders.Fuse(), decoders.Replace(" ,", ",")]
    tokenizer.backend.decoder = decoders.Sequence(parts)
    assert tokenizer.rewrites
    pieces = Pieces(tokenizer.decode, rewrites=tokenizer.rewrites)
    found = [pieces.add(token) for token in tokenizer.encode(text)]
    assert "".join([*found, pieces.end()]) == text.replace(" ,", ",")


def test_a_character_of_several_bytes_comes_whole():
    tokenizer = KINDS["byte"]
    pieces = Pieces(tokenizer.decode)
    found = [pieces.add(token) for token in tokenizer.encode("aé😀b")]
    assert [piece for piece in found if piece] == ["a", "é", "😀", "b"]


def test_what_may_be_the_beginning_of_a_stop_is_held_back():
    tokenizer = KINDS["byte"]
    pieces = Pieces(tokenizer.decode, ["END"])
    found = [pieces.add(token) for token in tokenizer.encode("xENyENDz")]
    assert found == ["x", "", "", "ENy", "", "", "", ""]
    assert pieces.end() == ""


def pipeline(kind="bpe", model=None, task=None, **options):
    tokenizer = KINDS[kind]
    built = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=64, **(model or {}))
    generation = GenerationConfig(
        **{"max_new_tokens": 20, "eos_id": tokenizer.boundary_id, **options}
    )
    return Pipeline(built, tokenizer, task=task or LanguageModeling(), generation=generation)


SEQ2SEQ = {"model": Seq2SeqTransformer, "causal": False}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("task", ["language_modeling", "seq2seq"])
def test_a_stream_is_the_whole_answer(kind, task):
    more = {"model": SEQ2SEQ, "task": Seq2Seq()} if task == "seq2seq" else {}
    m = pipeline(kind, **more)
    for options in ({"temperature": 0.0}, {"seed": 3}, {"seed": 5, "stop": ["a", " t"]}):
        pieces = list(m.stream("The cat", **options))
        assert all(pieces)
        assert "".join(pieces) == m.generate("The cat", **options)


def test_pieces_come_while_the_model_still_writes(monkeypatch):
    m = pipeline("byte")
    features, passes = m.model.features, []
    monkeypatch.setattr(
        m.model, "features", lambda *a, **k: (passes.append(None), features(*a, **k))[1]
    )
    next(m.stream("a", seed=0, eos_id=None))
    assert len(passes) < 20


def test_stop_strings_end_an_answer_and_are_not_in_it():
    m = pipeline("bpe", eos_id=None)
    whole = m.generate("The", seed=1)
    stop = whole[5:7]
    assert m.generate("The", seed=1, stop=[stop]) == whole[: whole.index(stop)]
    together = m.generate(["The", "Nobody"], seed=1, stop=[stop])
    apart = [text.split(stop)[0] for text in m.generate(["The", "Nobody"], seed=1)]
    assert together[0] == apart[0]
    text, written = m.write(["The"], seed=1, stop=[stop])[0]
    assert text == whole[: whole.index(stop)]
    assert len(written.tokens) < 20


def test_a_stop_ends_a_hypothesis_of_a_search():
    m = pipeline("byte", eos_id=None)
    best = m.generate("The", num_beams=3)
    stop = best[4]
    short = {"num_beams": 3, "length_penalty": -2.0}  # shorter texts are the better ones
    found = m.generate("The", stop=[stop], num_return_sequences=3, **short)
    assert all(stop not in text for text in found)
    assert len(found[0]) < 20


def test_several_answers_are_a_list_for_each_prompt():
    m = pipeline("byte")
    several = {"num_return_sequences": 3, "seed": 0}
    assert [len(texts) for texts in m.generate(["a", "b"], **several)] == [3, 3]
    assert m.generate("a", **several) == m.generate(["a"], **several)[0]


def test_processors_reach_the_model():
    m = pipeline("char")
    a = m.tokenizer.encode("a")[0]

    def only(tokens, logits):
        return torch.full_like(logits, -1e9).index_fill(1, torch.tensor([a]), 0.0)

    assert m.generate("T", max_new_tokens=5, temperature=0.0, processors=[only]) == "aaaaa"
    assert "".join(m.stream("T", max_new_tokens=5, temperature=0.0, processors=[only])) == "aaaaa"


def test_others_go_on_while_a_stream_waits():
    m = pipeline("byte")
    features, ticks = m.model.features, []

    def slow(*args, **options):
        time.sleep(0.01)
        return features(*args, **options)

    m.model.features = slow

    async def tick():
        while True:
            ticks.append(None)
            await asyncio.sleep(0.001)

    async def read():
        other = asyncio.ensure_future(tick())
        pieces = [piece async for piece in m.astream("a", seed=0, eos_id=None)]
        other.cancel()
        return pieces

    assert "".join(asyncio.run(read())) == m.generate("a", seed=0, eos_id=None)
    assert len(ticks) > 20


def test_what_cannot_be_streamed():
    m = pipeline()
    with pytest.raises(UserError, match="num_beams=3 cannot be streamed; set num_beams=1"):
        next(m.stream("The", num_beams=3))
    m.task = Classification(classes=["a", "b"], input_kind="text")
    with pytest.raises(UserError, match="a model for classification writes no text; use predict"):
        next(m.stream("The"))
