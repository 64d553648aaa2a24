"""Slots of the kernels: the logits of a sequence are the same bits whatever is beside it."""

import pytest
import torch

from miniformer import Seq2SeqTransformer, UserError
from miniformer.config import GenerationConfig
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.slots import SlotDecoder
from tests.kit import tiny_model

WEIGHTS = ("float32", "bf16", "int8", "int4")
POSITIONS = ("rotary", "alibi", "t5_relative", "learned")


def model_of(position="rotary", **options):
    options = {"causal": "model" not in options, **options}
    return tiny_model(
        max_seq_len=96, d_model=32, n_heads=4, n_layers=2, d_ff=64, position=position, **options
    )  # fmt: skip


def prompt_of(number, length):
    return torch.randint(0, 31, (length,), generator=torch.Generator().manual_seed(number)).tolist()


class Recorder:
    """A decoder whose logits are kept, by sequence and step."""

    def __init__(self, model, weights="float32", num_slots=32):
        options = GenerationConfig(12, temperature=0, weight_dtype=weights)
        self.decoder = SlotDecoder(model, options, num_slots=num_slots)
        self.logits, self.names = {}, {}

    def add(self, name, inputs):
        slot = self.decoder.add(inputs)
        self.names[slot], self.logits[name] = name, []
        engine = self.decoder._engine
        if not hasattr(engine, "advance_before"):
            engine.advance_before, engine.advance = engine.advance, self.advance

    def advance(self, tokens, limit):
        slots, logits = self.decoder._engine.advance_before(tokens, limit)
        for slot, row in zip(slots, logits, strict=True):
            self.logits[self.names[slot]].append(row.clone())
        return slots, logits

    def run(self, limit=None):
        while self.decoder.num_unfinished:
            self.decoder.step(limit)
        for slot in [*self.decoder._sequences]:
            self.decoder.remove(slot)

    def result(self, name):
        return torch.stack(self.logits[name])


def alone(model, weights, inputs):
    recorder = Recorder(model, weights, 1)
    recorder.add("alone", inputs)
    recorder.run()
    return recorder.result("alone")


@pytest.mark.catches("sums_have_an_order_for_each_number_of_rows")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("position", POSITIONS)
def test_logits_are_the_same_bits_alone_and_among_31_others(position, weights):
    """The others come at different steps, and prompts are read in parts of 7 tokens."""
    model, probe = model_of(position), prompt_of(0, 40)
    want = alone(model, weights, probe)
    recorder = Recorder(model, weights)
    for number in range(31):
        recorder.add(number, prompt_of(number + 1, 1 + 5 * number % 37))
        recorder.decoder.step(7)
    recorder.add("probe", probe)
    recorder.run(7)
    assert torch.equal(recorder.result("probe"), want)


@pytest.mark.catches(
    "prefix_is_matched_one_token_too_far", "prefix_is_not_copied",
    "long_prompts_lose_what_a_call_cannot_take", "positions_continue_those_of_the_last_sequence",
)  # fmt: skip
@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_are_the_same_bits_before_and_after_a_prefix_hit(weights, monkeypatch):
    """The prefix is that of a running sequence, of an ended one, and of a slot's own last one."""
    monkeypatch.setattr("miniformer.runtime.native.slot_engine._MAX_TOKENS", 24)
    model, start = model_of(), [10 + token % 20 for token in prompt_of(0, 48)]
    lengths = {"first": 48, "second": 40, "third": 31, "own": 48}
    prompts = {
        name: [*start[:length], number, *prompt_of(number, 5)]
        for number, (name, length) in enumerate(lengths.items(), 1)
    }
    want = {name: alone(model, weights, prompt) for name, prompt in prompts.items()}
    recorder = Recorder(model, weights, 3)
    reused = []
    for name in ("first", "second", "third"):
        recorder.add(name, prompts[name])
        recorder.decoder.step(1000)
        reused.append(recorder.decoder.num_reused)
    recorder.run()
    recorder.add("own", prompts["own"])
    recorder.run()
    assert [*reused, recorder.decoder.num_reused] == [0, 40, 71, 119]
    for name, expected in want.items():
        assert torch.equal(recorder.result(name), expected), name


def test_equal_prompts_read_their_last_token_only():
    model, prompt = model_of(), prompt_of(3, 30)
    recorder = Recorder(model, num_slots=2)
    for number in range(4):
        recorder.add(number, prompt)
        recorder.run()
        assert recorder.decoder.num_reused == 29 * number
    assert all(torch.equal(recorder.result(0), recorder.result(n)) for n in range(1, 4))


@pytest.mark.catches("slots_keep_the_source_of_their_last_sequence")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_answers_to_sources_are_the_same_bits_alone_and_among_others(weights):
    model = model_of("t5_relative", model=Seq2SeqTransformer)
    inputs = [GenerationInput([0], prompt_of(n, 1 + 7 * n % 40)) for n in range(12)]
    want = [alone(model, weights, item) for item in inputs]
    recorder = Recorder(model, weights, 5)
    for first in range(0, 12, 4):
        for number in range(first, first + 4):
            recorder.add(number, inputs[number])
            recorder.decoder.step()
        recorder.run()
    for number, expected in enumerate(want):
        assert torch.equal(recorder.result(number), expected)
    assert recorder.decoder.num_reused == 0


def test_sources_beyond_the_context_have_room():
    model = model_of("alibi", model=Seq2SeqTransformer)
    item = GenerationInput([0], prompt_of(0, 96))
    recorder = Recorder(model, num_slots=2)
    recorder.add("short", GenerationInput([0], [1, 2]))
    recorder.add("long", item)
    recorder.run()
    assert torch.equal(recorder.result("long"), alone(model, "float32", item))


@pytest.mark.catches("a_failed_sequence_stops_the_others")
def test_a_sequence_that_cannot_go_on_leaves_the_others():
    model = model_of("learned")
    model.position.weight.data[20] = float("nan")
    options = GenerationConfig(6, temperature=0)
    (want,) = generate(model, [GenerationInput([1, 2])], options)
    errors = {}
    decoder = SlotDecoder(model, options, num_slots=3, on_error=errors.__setitem__)
    good, bad = decoder.add([1, 2]), decoder.add([1] * 25)
    mask = decoder.add([3], processors=[lambda tokens, logits: logits - float("inf")])
    while decoder.num_unfinished:
        decoder.step()
    assert decoder.remove(good).tokens == want.tokens
    assert "not finite" in str(errors[bad])
    assert "no token is allowed" in str(errors[mask])
    decoder = SlotDecoder(model, options)
    decoder.add([1] * 25)
    with pytest.raises(UserError, match="not finite"):
        decoder.step()
