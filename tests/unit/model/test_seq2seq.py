"""Seq2SeqTransformer.generate against a loop of full forward passes."""

import pytest
import torch

from miniformer import Seq2SeqTransformer, UserError
from miniformer.config import ConfigError
from tests.kit import tiny_model


def seq2seq(**changes):
    return tiny_model(model=Seq2SeqTransformer, causal=False, **changes)


def by_whole_passes(transformer, source, new, start):
    """Greedy decoding without a cache."""
    target = [start]
    for _ in range(new):
        logits = transformer(torch.tensor([source]), torch.tensor([target]))
        target.append(int(logits[0, -1].argmax()))
    return target[1:]


@pytest.mark.catches("prompts_are_padded_without_a_mask")
@pytest.mark.parametrize("position", ["rotary", "learned", "t5_relative", "alibi"])
def test_seq2seq_generate_matches_full_passes(position):
    transformer = seq2seq(position=position)
    sources = [[3, 1, 4, 1, 5], [9, 2], [6]]
    expected = [by_whole_passes(transformer, source, 8, start=2) for source in sources]
    assert transformer.generate(sources, 8, start_id=2, temperature=0) == expected
    alone = transformer.generate(torch.tensor([[9, 2]]), 8, start_id=2, temperature=0)
    assert alone.tolist() == expected[1:2]


def test_seq2seq_generate_ignores_source_padding():
    transformer = seq2seq()
    mask = torch.tensor([[True, True, False, False]])
    padded = torch.tensor([[9, 2, 7, 7]])
    result = transformer.generate(padded, 6, source_mask=mask, temperature=0)
    assert torch.equal(result, transformer.generate(padded[:, :2], 6, temperature=0))


def test_seq2seq_generate_ends_a_row_at_eos_and_continues_the_others():
    transformer = seq2seq()
    sources = [[3, 1, 4, 1, 5], [9, 2]]
    full = transformer.generate(sources, 8, temperature=0)
    eos = full[0][2]
    result = transformer.generate(sources, 8, temperature=0, eos_id=eos)
    cut = [row[: row.index(eos)] if eos in row else row for row in full]
    assert result == cut


def test_seq2seq_sampling_repeats_with_its_seed():
    transformer = seq2seq()
    first, second, different = (
        transformer.generate([[1, 2]] * 4, 9, seed=seed) for seed in (0, 0, 1)
    )
    assert first == second != different


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([[1], []], {}, "source 1 is empty"),
        ([[99]], {}, "token id 99 is outside the model's vocabulary, 0 to 30"),
        ([[1]], {"start_id": 31}, "token id 31 is outside"),
        ([[1]], {"eos_id": 31}, "eos_id=31 is outside"),
        ([[1]], {"max_new_tokens": 32}, "ask for at most 31 new tokens"),
        (torch.zeros(1, 33).long(), {"max_new_tokens": 1}, "longer than max_seq_len=32"),
        (torch.zeros(1, 3), {"max_new_tokens": 1}, "source"),
    ],
)
def test_seq2seq_generate_rejects_invalid_inputs(source, options, message):
    with pytest.raises(UserError if isinstance(source, list) else ValueError, match=message):
        seq2seq().generate(source, **options)


def test_seq2seq_generate_without_sources_returns_no_targets():
    assert seq2seq().generate([]) == []
    assert seq2seq().generate(torch.zeros(0, 3).long()).shape == (0, 0)


def test_seq2seq_source_vocabulary_is_separate():
    two = seq2seq(source_vocab_size=50)
    assert two.embedding.weight is not two.source_embedding.weight
    assert len(two.generate([[49, 40]], 3)[0]) == 3  # targets go up to 30 only
    with pytest.raises(UserError, match="token id 50 is outside the model's vocabulary, 0 to 49"):
        two.generate([[50]], 3)
    with pytest.raises(ConfigError, match="source_vocab_size=50 is for a Seq2SeqTransformer"):
        tiny_model(source_vocab_size=50)
