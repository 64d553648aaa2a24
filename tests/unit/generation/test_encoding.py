"""Encoder outputs that are computed once for equal sources."""

import pytest
import torch

from miniformer import Seq2SeqTransformer
from miniformer.config import GenerationConfig
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.encoding import EncoderCache, encode_sources
from miniformer.generation.inputs import PromptBatch, left_pad
from miniformer.generation.slots import SlotDecoder
from tests.kit import tiny_model

SOURCES = [[3, 1, 4], [1, 5, 9, 2], [3, 1, 4], [6], [1, 5, 9, 2], [3, 1, 7], [3, 1, 4]]


def model_with_counts(monkeypatch, **fields):
    """A translator, and a list that gets the number of sources of each encoder pass."""
    model, counts = tiny_model(model=Seq2SeqTransformer, causal=False, **fields), []
    encode = model.encode

    def counted(source, *args, **options):
        counts.append(len(source))
        return encode(source, *args, **options)

    monkeypatch.setattr(model, "encode", counted)
    return model, counts


def batch_of(sources):
    return PromptBatch(torch.zeros(len(sources), 1).long(), None, *left_pad(sources, "source"))


def rows_of(memory):
    return [row.features[0] for row in memory.split()]


@pytest.mark.catches("sources_with_one_beginning_are_one")
@torch.inference_mode()
def test_equal_sources_of_a_batch_are_encoded_once(monkeypatch):
    model, counts = model_with_counts(monkeypatch)
    expected = [model.encode(torch.tensor([source])).features[0] for source in SOURCES]
    counts.clear()
    (memory,) = encode_sources(model, batch_of(SOURCES))
    assert counts == [4]
    for actual, row in zip(rows_of(memory), expected, strict=True):
        torch.testing.assert_close(actual, row)
    inputs = [GenerationInput([0], source) for source in SOURCES]
    for options in ({"temperature": 0}, {"num_beams": 3}, {"seed": 1, "num_return_sequences": 2}):
        counts.clear()
        together = generate(model, inputs, GenerationConfig(6, **options))
        assert counts == [4]
        copies = len(together) // len(inputs)
        for number, item in enumerate(inputs):
            alone = generate(model, [item], GenerationConfig(6, **options), prompt_indices=[number])
            result = together[number * copies : (number + 1) * copies]
            assert [output.tokens for output in result] == [output.tokens for output in alone]
    assert encode_sources(model, PromptBatch(torch.zeros(2, 1).long())) == []


def test_features_are_encoded_row_by_row(monkeypatch):
    model, counts = model_with_counts(monkeypatch, input_dim=2)
    source = torch.ones(3, 4, 2)
    encode_sources(model, PromptBatch(torch.zeros(3, 1).long(), None, source))
    assert counts == [3]


@pytest.mark.catches("encoder_outputs_outlive_their_weights")
@torch.no_grad()
def test_encoder_cache(monkeypatch):
    model, counts = model_with_counts(monkeypatch)
    encoder_cache = EncoderCache()
    for sources, encoded in ((SOURCES[:3], [2]), (SOURCES, [2]), (SOURCES[::-1], []), ([[6]], [])):
        counts.clear()
        (memory,) = encode_sources(model, batch_of(sources), encoder_cache)
        assert counts == encoded
        for actual, source in zip(rows_of(memory), sources, strict=True):
            alone = model.encode(torch.tensor([source])).features[0]
            torch.testing.assert_close(actual, alone)
    assert (len(encoder_cache), encoder_cache.num_encoded) == (4, 4)
    assert encoder_cache.nbytes >= 4 * 16 * (3 + 4 + 1 + 3)
    model.embedding.weight.add_(1)
    counts.clear()
    encode_sources(model, batch_of([[6]]), encoder_cache)
    assert (counts, len(encoder_cache)) == ([1], 1)


@torch.no_grad()
def test_encoder_cache_evicts_what_was_used_least_recently(monkeypatch):
    model, counts = model_with_counts(monkeypatch)
    encoder_cache = EncoderCache(max_bytes=2 * 4 * 16 * 3)
    for source, encoded in (([1] * 3, 1), ([2] * 3, 1), ([1] * 3, 0), ([3] * 3, 1), ([1] * 3, 0),
                            ([2] * 3, 1), ([4] * 9, 1), ([4] * 9, 1)):  # fmt: skip
        counts.clear()
        (memory,) = encode_sources(model, batch_of([source]), encoder_cache)
        assert sum(counts) == encoded
        assert memory.features.shape == (1, len(source), 16)
        assert encoder_cache.nbytes <= encoder_cache.max_bytes


def test_slots_use_an_encoder_cache(monkeypatch):
    model, counts = model_with_counts(monkeypatch)
    options = GenerationConfig(5, temperature=0)
    expected = [generate(model, [GenerationInput([0], source)], options) for source in SOURCES]
    counts.clear()
    decoder = SlotDecoder(model, options, num_slots=7, encoder_cache=EncoderCache())
    slots = [decoder.add(GenerationInput([0], source)) for source in SOURCES]
    while decoder.num_unfinished:
        decoder.step()
    assert sum(counts) == 4
    for slot, (output,) in zip(slots, expected, strict=True):
        assert decoder.remove(slot).tokens == output.tokens
