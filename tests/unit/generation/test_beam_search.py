"""Beam search against exhaustive search, and against itself without early stopping."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Seq2SeqTransformer
from miniformer.config import ConfigError, GenerationConfig
from miniformer.generation.beam_search import BeamSearch, beam_search
from miniformer.generation.inputs import PromptBatch
from miniformer.generation.loop import prefill
from tests.kit import tiny_model

END = 0
PROMPT = [3, 1, 2]


def sharp(**changes):
    """A model with four token ids and well-separated logits."""
    model = tiny_model(vocab_size=4, tie_embeddings=False, **changes)
    torch.manual_seed(5)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def search(model, options, prompts=(PROMPT,)):
    """Hypotheses of each prompt and their scores."""
    with torch.inference_mode():
        state = prefill(model, PromptBatch(torch.tensor(prompts)), options)
        beams = beam_search(state, options)
    return [
        [
            (row[:length].tolist(), float(score))
            for row, _, length, score in zip(*rows, strict=True)
            if score > -torch.inf
        ]
        for rows in zip(*beams, strict=True)
    ]


def exhaustive(model, max_length, penalty, eos=END):
    """Every possible continuation with its score, without cache or search."""
    full = {}
    for ids in itertools.product(range(4), repeat=max_length):
        ids = [*ids]
        ids = ids[: ids.index(eos) + 1] if eos in ids else ids
        logits = model(torch.tensor([PROMPT + ids]))[0, len(PROMPT) - 1 : -1].detach()
        log_p = logits.double().log_softmax(-1)
        total = float(log_p[torch.arange(len(ids)), torch.tensor(ids)].sum())
        full[tuple(ids)] = total / len(ids) ** penalty
    return sorted(([*ids], score) for ids, score in full.items())


@pytest.mark.catches("length_penalty_is_ignored", "beams_change_places_without_their_tokens")
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("eos", [END, None])
def test_beam_search_that_is_wide_enough_finds_the_best_text(penalty, eos):
    model = sharp()
    options = GenerationConfig(max_new_tokens=4, num_beams=4**4, length_penalty=penalty, eos_id=eos)
    (hypotheses,) = search(model, options)
    expected = sorted(exhaustive(model, 4, penalty, eos), key=lambda item: -item[1])
    assert [score for _, score in hypotheses] == pytest.approx([s for _, s in expected], abs=1e-4)
    assert sorted(ids for ids, _ in hypotheses) == sorted(ids for ids, _ in expected)
    assert hypotheses[0][0] == expected[0][0]


@pytest.mark.catches("search_stops_at_the_next_token")
@settings(max_examples=40, deadline=None)
@given(
    beams=st.integers(1, 5),
    penalty=st.sampled_from([-1.5, 0.0, 0.6, 1.0, 2.0]),
    seed=st.integers(0, 999),
)
def test_beam_search_early_stopping_does_not_change_the_text(beams, penalty, seed):
    """Compares the search with one that always continues to max_new_tokens."""
    options = GenerationConfig(
        max_new_tokens=9, num_beams=beams, length_penalty=penalty, eos_id=END
    )
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(9, 7, generator=generator)  # by step and last token
    logits[:, END] += 1

    def run(stops):
        search, token, steps = (
            BeamSearch(2, options, torch.device("cpu")),
            torch.zeros(2 * beams),
            0,
        )
        while search.step < 9 and not (stops and search.is_done()):
            row = torch.arange(2 * beams) // beams  # the second row has other logits
            steps += 1
            step = logits[search.step] + (row * token.long())[:, None] * 0.3
            _, token = search.advance(step.log_softmax(-1))
        return search.finished, steps

    (early, steps), (full, all_steps) = run(True), run(False)
    assert steps <= all_steps == 9
    finished = full.scores > -torch.inf
    torch.testing.assert_close(early.scores[finished], full.scores[finished])
    assert torch.equal(early.tokens[finished], full.tokens[finished])


def test_beam_search_ends_once_no_better_text_is_possible():
    """With an almost certain EOS the search takes one step instead of fifty."""
    options = GenerationConfig(max_new_tokens=50, num_beams=1, eos_id=END)
    search = BeamSearch(1, options, torch.device("cpu"))
    search.advance(torch.tensor([[9.0, 0.0, 0.0]]).log_softmax(-1))
    assert search.is_done()


@pytest.mark.catches("beams_continue_from_the_first_row")
@pytest.mark.parametrize("position", ["rotary", "learned", "alibi"])
def test_beam_search_of_a_batch_equals_single_prompts(position):
    model = tiny_model(position=position)
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    options = {"num_beams": 4, "eos_id": 7, "length_penalty": 0.8}
    together = model.generate(prompts, 9, **options)
    alone = [model.generate([prompt], 9, **options)[0] for prompt in prompts]
    assert together == alone
    padded = model.generate(torch.tensor([prompts[0]]), 9, **options)[0].tolist()
    assert padded[: len(alone[0])] == alone[0]
    assert set(padded[len(alone[0]) :]) <= {7}


def test_beam_search_of_a_batch_equals_single_sources():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    sources = [[3, 1, 4, 1, 5], [9, 2], [6]]
    options = {"num_beams": 3, "eos_id": 7, "start_id": 2}
    together = model.generate(sources, 8, **options)
    assert together == [model.generate([item], 8, **options)[0] for item in sources]
    likelier = [
        math.fsum(log_p(model, source, 2, row) for row in (beam,))
        - log_p(model, source, 2, greedy)
        for source, beam, greedy in zip(
            sources, model.generate(sources, 8, num_beams=8, start_id=2),
            model.generate(sources, 8, temperature=0, start_id=2), strict=True,
        )
    ]  # fmt: skip
    assert all(gain > -1e-5 for gain in likelier)
    assert any(gain > 1e-3 for gain in likelier)


def log_p(model, source, start, target):
    """Log-probability of a target in one forward pass."""
    logits = model(torch.tensor([source]), torch.tensor([[start, *target[:-1]]]))[0].detach()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": 2, "temperature": 0.7}, "set temperature=0, not 0.7"),
        ({"num_beams": 2, "top_k": 3}, "num_beams=2 does not sample; leave top_k out"),
    ],
)
def test_beam_search_rejects_incompatible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model().generate([[1]], 3, **options)


def diverse(model, options):
    """Diverse beam search with Python lists."""
    groups, width = options.num_beam_groups, options.num_beams // options.num_beam_groups
    running = [[([], 0.0)] for _ in range(groups)]
    ended = [[] for _ in range(groups)]
    for step in range(1, options.max_new_tokens + 1):
        taken = [0] * model.config.vocab_size
        for group in range(groups):
            candidates = []
            for ids, score in running[group]:
                logits = model(torch.tensor([PROMPT + ids]))[0, -1].detach()
                log_p = logits.double().log_softmax(-1).tolist()
                candidates += [
                    ([*ids, token], score + p - options.diversity_penalty * taken[token])
                    for token, p in enumerate(log_p)
                ]
            candidates.sort(key=lambda item: -item[1])
            running[group] = []
            for rank, (ids, score) in enumerate(candidates[: 2 * width]):
                if ids[-1] == options.eos_id or step == options.max_new_tokens:
                    if rank < width:
                        ended[group].append((ids, score / len(ids) ** options.length_penalty))
                elif len(running[group]) < width:
                    running[group].append((ids, score))
            for ids, _ in candidates[:width]:
                taken[ids[-1]] += 1
    best = [sorted(item, key=lambda e: -e[1])[:width] for item in ended]
    return sorted((item for group in best for item in group), key=lambda item: -item[1])


@pytest.mark.parametrize("penalty", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("eos", [END, None])
def test_beam_groups_match_the_definition_of_diverse_search(penalty, eos):
    model = sharp()
    options = GenerationConfig(
        max_new_tokens=5, num_beams=6, num_beam_groups=3, diversity_penalty=penalty, eos_id=eos
    )
    (hypotheses,) = search(model, options)
    expected = diverse(model, options)
    assert [score for _, score in hypotheses] == pytest.approx([s for _, s in expected], abs=1e-4)
    if penalty:
        assert [ids for ids, _ in hypotheses] == [ids for ids, _ in expected]
    if penalty == 4 and eos is None:  # it outweighs every difference of the model
        assert len({ids[0] for ids, _ in hypotheses}) == 3


def test_gnmt_length_penalty():
    """((5 + length) / 6) ** penalty, Wu et al. 2016, equation 14."""
    model = sharp()
    options = {"max_new_tokens": 4, "num_beams": 4**4, "eos_id": END}
    (sums,) = search(model, GenerationConfig(length_penalty=0.0, **options))
    (hypotheses,) = search(
        model, GenerationConfig(length_penalty=0.6, length_normalization="gnmt", **options)
    )
    expected = {tuple(ids): score / ((5 + len(ids)) / 6) ** 0.6 for ids, score in sums}
    assert {tuple(ids): score for ids, score in hypotheses} == pytest.approx(expected, abs=1e-4)
    assert [score for _, score in hypotheses] == pytest.approx(
        sorted(expected.values(), reverse=True), abs=1e-4
    )
