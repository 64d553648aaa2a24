"""Samples of text that a run generates."""

import types

import pytest

from miniformer.config import GenerationConfig
from miniformer.training.callbacks.generation_samples import SampleGeneration
from miniformer.training.setup import auto_tune


@pytest.mark.catches("samples_have_no_seed")
@pytest.mark.parametrize(("beams", "seed"), [(1, 0), (3, None)])
def test_sample_generation_repeats_with_its_seed(beams, seed):
    generation = GenerationConfig(max_new_tokens=100, temperature=0.0, num_beams=beams)
    writer = types.SimpleNamespace(
        artifacts=types.SimpleNamespace(generation_config=generation),
        run=types.SimpleNamespace(tokenizer=None, kind="seq2seq"),
    )
    config = SampleGeneration._generation_config(writer)
    assert (config.seed, config.num_beams, config.max_new_tokens) == (seed, beams, 64)


@pytest.mark.catches("limit_of_tokens_stays_for_other_batches")
def test_sample_generation_max_new_tokens_shrinks_with_the_batch():
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(batch_tokens=4096), data=types.SimpleNamespace(batch_size=16)
    )
    assert [auto_tune._scaled_batch_tokens(run, size) for size in (16, 4, 1)] == [4096, 1024, 256]
    run.config.batch_tokens = None
    assert auto_tune._scaled_batch_tokens(run, 4) is None
