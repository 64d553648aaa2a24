"""Continuous batching: each sequence gets the tokens that it gets alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Seq2SeqTransformer, UserError
from miniformer.config import GenerationConfig
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.runtime import PlainRuntime
from miniformer.generation.slots import SlotDecoder
from tests.kit import tiny_model

CAPACITY = 24
DYNAMIC = {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 4}
MODELS = {
    "rotary": {},
    "ring": {"sliding_window": 3, "window_pattern": "LG"},
    "alibi": {"position": "alibi"},
    "t5_relative": {"position": "t5_relative", "relative_buckets": 8, "relative_max_distance": 9},
    "learned": {"position": "learned"},
    "dynamic": {"rotary_scaling": DYNAMIC},
    "seq2seq": {"model": Seq2SeqTransformer, "causal": False},
    "features": {"model": Seq2SeqTransformer, "causal": False, "input_dim": 2},
}
OPTIONS = [
    {"temperature": 0},
    {"temperature": 0, "eos_id": 3, "stop_token_ids": [7, 9]},
    {"seed": 1},
    {"seed": 2, "top_k": 5, "temperature": 0.7, "eos_id": 4},
    {"seed": 3, "top_p": 0.9, "repetition_penalty": 1.3},
    {"temperature": 0, "no_repeat_ngram_size": 2, "min_new_tokens": 1, "eos_id": 5},
]


def even_only(tokens, logits):
    return logits.masked_fill(torch.arange(logits.shape[1]) % 2 == 1, -torch.inf)


class Arrivals:
    """Sequences that come and go in the slots of a decoder, and the same ones alone."""

    def __init__(self, name, seed, num_slots, **options):
        self.random, self.name = random.Random(seed), name
        self.model = tiny_model(max_seq_len=CAPACITY, **MODELS[name])
        self.decoder = SlotDecoder(
            self.model, GenerationConfig(**options), num_slots=num_slots, return_logprobs=True
        )
        self.runtime_options = options
        self.expected, self.received = {}, {}

    def add(self, prompt_length, max_new_tokens, index):
        ids = [self.random.randrange(31) for _ in range(prompt_length)]
        source = {
            "seq2seq": [self.random.randrange(31) for _ in range(self.random.randint(1, 9))],
            "features": torch.randn(self.random.randint(1, 9), 2),
        }
        item = GenerationInput(ids, source.get(self.name))
        options = GenerationConfig(
            max_new_tokens=max_new_tokens, **self.random.choice(OPTIONS), **self.runtime_options
        )
        others = {
            "processors": self.random.choice([(), (even_only,)]),
            "stop_fn": self.random.choice([None, lambda tokens: tokens[-1] == 11]),
        }
        (output,) = generate(self.model, [item], options, prompt_indices=[index], **others)
        slot = self.decoder.add(item, options, index=index, **others)
        self.expected[slot], self.received[slot] = output, []
        return slot

    def step(self):
        for slot, token, logprob, finished, _ in self.decoder.step():
            self.received[slot].append(token)
            output = self.expected[slot]
            ended = [token] if finished and output.finished else []
            assert self.received[slot] == output.tokens[: len(self.received[slot])] + ended
            assert finished == self.is_finished(slot)
            assert logprob == pytest.approx(output.logprobs[len(self.received[slot]) - 1], abs=1e-4)

    def is_finished(self, slot):
        return len(self.received[slot]) == len(self.expected[slot].logprobs)

    def remove(self, slot):
        output, expected = self.decoder.remove(slot), self.expected.pop(slot)
        received = self.received.pop(slot)
        assert output.tokens == expected.tokens[: len(received)]
        assert output.finished == (expected.finished and len(received) == len(expected.logprobs))

    def run(self, program):
        for prompt_length, max_new_tokens, index, steps, removed in program:
            if not self.decoder.num_free:
                self.remove(min(self.expected))
            self.add(prompt_length, max_new_tokens, index)
            for _ in range(steps):
                self.step()
            if removed is not None and removed in self.expected:
                self.remove(removed)
        while self.decoder.num_unfinished:
            self.step()
        assert self.decoder.step() == []
        for slot in [*self.expected]:
            self.remove(slot)


PROGRAMS = st.lists(
    st.tuples(
        st.integers(1, 8), st.integers(1, 16), st.integers(0, 3), st.integers(0, 7),
        st.sampled_from([None, 0, 1, 2]),
    ),
    min_size=2, max_size=9,
)  # fmt: skip


@settings(max_examples=20)
@given(PROGRAMS, st.sampled_from([*MODELS]), st.booleans(), st.integers(1, 5), st.integers(0, 99))
def test_sequences_that_come_and_go_equal_sequences_alone(program, name, plain, num_slots, seed):
    """With the kernels, and with the modules and rings of sliding windows."""
    options = {"cache_kind": "window"} if plain else {}
    Arrivals(name, seed, num_slots, **options).run(program)


@pytest.mark.catches(
    "inserted_row_keeps_the_logits_of_its_predecessor", "slots_sample_the_numbers_of_a_neighbor",
    "inserted_source_is_not_padded", "slots_continue_after_eos",
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"cache_kind": "window"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_sequences_join_and_leave(name, options):
    program = [(1 + n % 5, 3 + 5 * n % 14, n, n % 4, n if n % 3 == 2 else None) for n in range(9)]
    Arrivals(name, 1, 4, **options).run(program)


@pytest.mark.catches("full_cache_is_not_compacted")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rotary", {"cache_kind": "full"}), ("ring", {"cache_kind": "window"}),
        ("seq2seq", {"cache_kind": "int8"}),
    ],
    ids=str,
)  # fmt: skip
def test_decode_goes_on_after_the_cache_is_full(name, options, monkeypatch):
    """Columns of finished rows are used again, while the others continue."""
    arrivals, columns, compact = Arrivals(name, 0, 3, **options), [], PlainRuntime.compact

    def counted(self, finished):
        columns.append(self.num_columns)
        compact(self, finished)
        assert self.num_columns < columns[-1]

    monkeypatch.setattr(PlainRuntime, "compact", counted)
    for number in range(8):
        while not arrivals.decoder.num_free:
            arrivals.step()
            for slot in [slot for slot in arrivals.expected if arrivals.is_finished(slot)]:
                arrivals.remove(slot)
        arrivals.add(1 + number % 4, 12 + number * 5 % 9, number)
        arrivals.step()
    assert CAPACITY in columns


def test_rows_follow_the_number_of_sequences():
    """One sequence among many slots costs the steps of one row."""
    arrivals = Arrivals("rotary", 0, 8, cache_kind="full")
    slots = [arrivals.add(2, 16 if number == 5 else 3, number) for number in range(7)]
    assert slots == [*range(7)]
    arrivals.step()
    assert len(arrivals.decoder._engine._rows) == 8
    for _ in range(5):
        arrivals.step()
    assert len(arrivals.decoder._engine._rows) == 1
    assert arrivals.decoder.num_unfinished <= 1
    while arrivals.decoder.num_unfinished:
        arrivals.step()
    assert arrivals.decoder.step() == []
    assert arrivals.decoder.num_free == 1
    arrivals.remove(3)
    assert arrivals.add(2, 3, 9) == 3
    arrivals.step()


def test_slots_report_wrong_use():
    model = tiny_model()
    decoder = SlotDecoder(model, GenerationConfig(max_new_tokens=4), num_slots=1, capacity=9)
    for options, message in (
        ({"num_beams": 2}, "num_beams=2 cannot be decoded in slots; set num_beams=1"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 cannot be decoded in slots"),
        ({"context_shift": True}, "context_shift cannot be decoded in slots"),
        ({"weight_dtype": "int8"}, "weight_dtype=int8 of a sequence, but stored of the SlotDecod"),
        ({"max_new_tokens": 8}, "a prompt of 2 tokens and max_new_tokens=8 exceed the capacity of"),
        ({"stop_strings": ["a"]}, "stop_strings needs a tokenizer"),
    ):
        with pytest.raises(UserError, match=message):
            decoder.add([1, 2], GenerationConfig(**{"max_new_tokens": 4, **options}))
    with pytest.raises(UserError, match="token id 31 is outside the model's vocabulary"):
        decoder.add([31])
    with pytest.raises(UserError, match="prompt 0 is empty"):
        decoder.add([])
    assert decoder.add([1, 2]) == 0
    with pytest.raises(UserError, match="all 1 slots are in use; remove a sequence, or raise num"):
        decoder.add([1])
    decoder.remove(0)
    with pytest.raises(UserError, match="slot 0 is free; in use: none"):
        decoder.remove(0)
    for values, message in (
        ({"num_slots": 0}, "num_slots must be at least 1, not 0"),
        ({"capacity": 33}, "capacity must be from 1 to max_seq_len=32, not 33"),
    ):
        with pytest.raises(UserError, match=message):
            SlotDecoder(model, **values)
    with pytest.raises(UserError, match=r"a model in training mode .* call eval\(\) on it"):
        SlotDecoder(model.train())
