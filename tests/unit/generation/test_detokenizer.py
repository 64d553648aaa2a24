"""Streaming: complete characters, stop strings, and the same text as without streaming."""

import asyncio
import random
import threading

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.detokenizer import StopStringChecker, StreamingDetokenizer
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE, tiny_model

KINDS = {
    kind: Tokenizer.train(kind, [VERSE, "naïve 😀 , . ' don't"] * 3, size)
    for kind, size in (("bpe", 320), ("byte", None), ("char", None), ("wordpiece", 200))
}


def answer(tokenizer, ids, stops):
    """The expected text and number of tokens: decodes all tokens after each one."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        result = [text.index(stop) for stop in stops if stop in text]
        if result:
            return text[: min(result)], count
    return tokenizer.decode(ids), len(ids)


def streamed(tokenizer, ids, stops):
    """The chunks of a stream with stop strings, and its number of tokens."""
    stop = StopStringChecker(tokenizer.decode, stops)
    detokenizer = StreamingDetokenizer(tokenizer.decode, stops, tokenizer.stable_length)
    result, count = [], 0
    for token in ids:
        count += 1
        result.append(detokenizer.add_token(token))
        if stop(detokenizer.tokens):
            break
    return [*result, detokenizer.flush()], count


def byte_fallback():
    """A tokenizer like that of Llama: letters, and bytes for all other characters."""
    names = [f"<0x{byte:02X}>" for byte in range(256)] + ["a", "b", "\u2581"]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)


ALL_KINDS = {
    **KINDS,
    "unigram": Tokenizer.train("unigram", [VERSE, "na\u00efve a\u00e9 \u65e5\u672c"] * 3, 320),
    "word": Tokenizer.train("word", [VERSE, "a b \u65e5 \u672c"] * 3),
    "bytes of other characters": byte_fallback(),
}
LETTERS = "ab \u00e9\u65e5\U0001f44d.,\n"


@pytest.mark.catches(
    "stop_prefix_before_half_character_is_given",
    "half_character_is_given",
    "stop_prefix_is_given",
    "run_of_bytes_is_given",
)
@settings(max_examples=400)
@given(
    st.sampled_from(sorted(ALL_KINDS)),
    st.text(LETTERS, max_size=40) | st.lists(st.integers(0, 400), max_size=40),
    st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3),
    st.randoms(),
)
def test_stream_equals_answer_for_any_tokens_and_stops(kind, given, stops, rng):
    """Tests tokenized texts, and random tokens, whose bytes may be invalid UTF-8."""
    tokenizer = ALL_KINDS[kind]
    if isinstance(given, str):
        ids = tokenizer.encode(given)
        # Stops that are in the text: its end, all of it, one that overlaps another.
        full = tokenizer.decode(ids)
        if full and rng.random() < 0.7:
            start = rng.randrange(len(full))
            stops = [*stops, full[start : start + rng.randint(1, 4)], full[-1:]][-2:]
    else:
        ids = [number % tokenizer.vocab_size for number in given]
    text, count = answer(tokenizer, ids, stops)
    result, steps = streamed(tokenizer, ids, stops)
    assert "".join(result) == text
    assert steps == count


@pytest.mark.catches("window_starts_within_held_back_text")
@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_long_stream_equals_answer(kind):
    """The window of a stream moves several times; random tokens have invalid UTF-8."""
    tokenizer, rng = ALL_KINDS[kind], random.Random(0)
    texts = [tokenizer.encode("".join(rng.choices(LETTERS, k=300))) for _ in range(3)]
    noise = [[rng.randrange(tokenizer.vocab_size) for _ in range(300)] for _ in range(3)]
    for ids in (*texts, *noise, tokenizer.encode("a" * 300)):
        full = tokenizer.decode(ids)
        stops = [full[-3:]] if len(full) > 3 else []
        text, count = answer(tokenizer, ids, stops)
        result, steps = streamed(tokenizer, ids, stops)
        assert ("".join(result), steps) == (text, count)


@pytest.mark.catches("each_token_decodes_the_whole_stream")
def test_work_of_a_stream_is_linear():
    tokenizer, sizes = KINDS["bpe"], []
    detokenizer = StreamingDetokenizer(
        lambda ids: (sizes.append(len(ids)), tokenizer.decode(ids))[1], ["never"]
    )
    for token in tokenizer.encode(VERSE * 40)[:2000]:
        detokenizer.add_token(token)
    assert max(sizes) <= 64
    assert len(sizes) < 1.1 * 2000


STOPS = {
    "end": ("a\u65e5b", ["b"], "a\u65e5"),
    "all": ("\u65e5", ["\u65e5"], ""),
    "nothing": ("ab", ["\u65e5"], "ab"),
    "begins but does not come": ("a\u65e5", ["\u65e5b"], "a\u65e5"),
    "one of two that overlap": ("xabcd", ["bcd", "abc"], "x"),
    "one within another": ("xab", ["abc", "b"], "xa"),
    "itself again": ("aab\u00e9", ["ab\u00e9"], "a"),
    "character of four bytes": ("hello \U0001f44d bye", ["o \U0001f44d"], "hell"),
    "newlines before a character": ("a\n\n\u2022 b", ["\n\n\u2022"], "a"),
    "half of another character": ("x\u00ea\u00e9", ["\u00e9"], "x\u00ea"),
}


@pytest.mark.catches("stop_prefix_before_half_character_is_given")
@pytest.mark.parametrize("case", STOPS)
@pytest.mark.parametrize("kind", ["byte", "bpe", "bytes of other characters"])
def test_generate_and_stream_end_before_stop(kind, case):
    """A processor forces a text; generation and stream end before the stop string."""
    text, stops, expected = STOPS[case]
    tokenizer = ALL_KINDS[kind]
    as_bytes = kind == "bytes of other characters"  # in which letters are bytes, too
    ids = list(text.encode()) if as_bytes else tokenizer.encode(text)
    m = pipeline(kind, eos_id=None)
    prompt = len(m.task.generation_inputs(m.model, tokenizer, ["a"])[0].input_ids)

    def forced(tokens, logits):
        one_hot = torch.full_like(logits, -torch.inf)
        one_hot[:, ids[tokens.shape[1] - prompt]] = 0
        return one_hot

    how = {"max_new_tokens": len(ids), "temperature": 0.0, "processors": [forced]}
    assert m.generate("a", stop_strings=stops, **how) == expected
    assert "".join(m.stream("a", stop_strings=stops, **how)) == expected


@pytest.mark.catches("stop_window_starts_within_character")
def test_stop_string_after_a_partial_character_is_found():
    """The window of the stop check starts inside a character."""
    stop = StopStringChecker(byte_fallback().decode, ["\U0001f44d"])
    for text in ("\u00e9" * 40 + "\U0001f44d", "\u00e9" * 40 + "a\U0001f44d"):
        ids = list(text.encode())
        assert stop(ids)
        assert not stop(ids[:-1])


@pytest.mark.catches("stop_window_is_too_short")
def test_stop_string_after_tokens_without_text_is_found():
    """Special tokens decode to no text."""
    tokenizer = KINDS["byte"]
    nothing = [tokenizer.eos_id] * 100
    a, b = tokenizer.encode("ab")
    stop = StopStringChecker(tokenizer.decode, ["ab"])
    assert not stop([a, *nothing])
    assert stop([a, *nothing, b])


@pytest.mark.catches("rewritten_text_is_given")
@given(st.text("ab ,", max_size=12))
def test_stream_holds_back_text_that_the_decoder_may_change(text):
    tokenizer = Tokenizer.train("byte", ["a"], None)
    parts = [tokenizer.backend.decoder, decoders.Fuse(), decoders.Replace(" ,", ",")]
    tokenizer.backend.decoder = decoders.Sequence(parts)
    assert tokenizer.has_contextual_decoding
    detokenizer = StreamingDetokenizer(tokenizer.decode, stable_length=tokenizer.stable_length)
    result = [detokenizer.add_token(token) for token in tokenizer.encode(text)]
    assert "".join([*result, detokenizer.flush()]) == text.replace(" ,", ",")


@pytest.mark.catches("half_character_is_given")
def test_stream_yields_complete_characters():
    tokenizer = KINDS["byte"]
    detokenizer = StreamingDetokenizer(tokenizer.decode)
    result = [detokenizer.add_token(token) for token in tokenizer.encode("aé😀b")]
    assert [piece for piece in result if piece] == ["a", "é", "😀", "b"]


@pytest.mark.catches("stop_prefix_is_given")
def test_stream_holds_back_partial_stop_strings():
    tokenizer = KINDS["byte"]
    detokenizer = StreamingDetokenizer(tokenizer.decode, ["END"])
    result = [detokenizer.add_token(token) for token in tokenizer.encode("xENyENDz")]
    assert result == ["x", "", "", "ENy", "", "", "", ""]
    assert detokenizer.flush() == ""


def pipeline(kind="bpe", model=None, task=None, **options):
    tokenizer = ALL_KINDS[kind]
    language_model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=64, **(model or {}))
    generation = GenerationConfig(**{"max_new_tokens": 20, "eos_id": tokenizer.eos_id, **options})
    return Pipeline(
        language_model, tokenizer, task=task or LanguageModeling(), generation=generation
    )


SEQ2SEQ = {"model": Seq2SeqTransformer, "causal": False}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("task", ["language_modeling", "seq2seq"])
def test_stream_equals_generate(kind, task):
    more = {"model": SEQ2SEQ, "task": Seq2Seq()} if task == "seq2seq" else {}
    m = pipeline(kind, **more)
    for options in ({"temperature": 0.0}, {"seed": 3}, {"seed": 5, "stop_strings": ["a", " t"]}):
        chunks = list(m.stream("The cat", **options))
        assert all(chunks)
        assert "".join(chunks) == m.generate("The cat", **options)


def test_stream_yields_text_before_generation_ends(monkeypatch):
    m = pipeline("byte")
    features, passes = m.model.features, []
    monkeypatch.setattr(
        m.model, "features", lambda *a, **k: (passes.append(None), features(*a, **k))[1]
    )
    next(m.stream("a", seed=0, eos_id=None))
    assert len(passes) < 20


def test_stop_strings_end_the_answer_and_are_not_in_it():
    m = pipeline("bpe", eos_id=None)
    full = m.generate("The", seed=1)
    stop = full[5:7]
    assert m.generate("The", seed=1, stop_strings=[stop]) == full[: full.index(stop)]
    together = m.generate(["The", "Nobody"], seed=1, stop_strings=[stop])
    apart = [text.split(stop)[0] for text in m.generate(["The", "Nobody"], seed=1)]
    assert together[0] == apart[0]
    text, written = m.generate_outputs(["The"], seed=1, stop_strings=[stop])[0]
    assert text == full[: full.index(stop)]
    assert len(written.tokens) < 20


def test_stop_string_ends_a_hypothesis_of_beam_search():
    m = pipeline("byte", eos_id=None)
    best = m.generate("The", num_beams=3)
    stop = best[4]
    short = {"num_beams": 3, "length_penalty": -2.0}  # favors shorter texts
    result = m.generate("The", stop_strings=[stop], num_return_sequences=3, **short)
    assert all(stop not in text for text in result)
    assert len(result[0]) < 20


def test_num_return_sequences_gives_a_list_for_each_prompt():
    m = pipeline("byte")
    several = {"num_return_sequences": 3, "seed": 0}
    assert [len(texts) for texts in m.generate(["a", "b"], **several)] == [3, 3]
    assert m.generate("a", **several) == m.generate(["a"], **several)[0]


def test_logits_processors_of_a_pipeline_are_applied():
    m = pipeline("char")
    a = m.tokenizer.encode("a")[0]

    def only(tokens, logits):
        return torch.full_like(logits, -1e9).index_fill(1, torch.tensor([a]), 0.0)

    assert m.generate("T", max_new_tokens=5, temperature=0.0, processors=[only]) == "aaaaa"
    assert "".join(m.stream("T", max_new_tokens=5, temperature=0.0, processors=[only])) == "aaaaa"


def test_stream_that_waits_does_not_block_other_calls():
    """Each model pass waits for another task, which never runs if the event loop is blocked."""
    m = pipeline("byte")
    features, ticked, passes = m.model.features, threading.Event(), []

    def slow(*args, **options):
        ticked.clear()
        passes.append(ticked.wait(60))
        return features(*args, **options)

    async def tick():
        while True:
            ticked.set()
            await asyncio.sleep(0)

    async def read():
        ticker = asyncio.ensure_future(tick())
        chunks = [chunk async for chunk in m.astream("a", seed=0, eos_id=None)]
        ticker.cancel()
        return chunks

    want = m.generate("a", seed=0, eos_id=None)
    m.model.features = slow
    assert "".join(asyncio.run(read())) == want
    assert passes == [True] * len(passes)
    assert len(passes) > 1


def test_stream_rejects_unsupported_settings():
    m = pipeline()
    with pytest.raises(UserError, match="num_beams=3 cannot be streamed; set num_beams=1"):
        next(m.stream("The", num_beams=3))
    m.task = Classification(classes=["a", "b"], input_kind="text")
    with pytest.raises(
        UserError, match="a model for classification generates no text; use predict"
    ):
        next(m.stream("The"))
