"""Beam search against exhaustive search, and against itself without its shortcuts."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Seq2SeqTransformer
from miniformer.config import ConfigError, GenerationConfig
from miniformer.generation.beam_search import BeamSearch, beam_search
from miniformer.generation.loop import DecodingState
from tests.kit import tiny_model

END = 0
PROMPT = [3, 1, 2]


def sharp(**changes):
    """A model of four ids whose answers are far apart."""
    model = tiny_model(vocab_size=4, tie_embeddings=False, **changes)
    torch.manual_seed(5)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def found_by(model, options, prompts=(PROMPT,)):
    """Of each prompt, its hypotheses without what ends them, and their scores."""
    with torch.inference_mode():
        begun = DecodingState(
            model, torch.tensor(prompts), None, options.max_new_tokens, copies=options.num_beams
        )
        beams = beam_search(begun, options)
    return [
        [
            (row[:length].tolist(), float(score))
            for row, _, length, score in zip(*rows, strict=True)
            if score > -torch.inf
        ]
        for rows in zip(*beams, strict=True)
    ]


def exhaustive(model, longest, penalty, eos=END):
    """Every continuation that there is with its score, the best first; no cache, no search."""
    whole = {}
    for ids in itertools.product(range(4), repeat=longest):
        ids = [*ids]
        ids = ids[: ids.index(eos) + 1] if eos in ids else ids
        logits = model(torch.tensor([PROMPT + ids]))[0, len(PROMPT) - 1 : -1].detach()
        log_p = logits.double().log_softmax(-1)
        total = float(log_p[torch.arange(len(ids)), torch.tensor(ids)].sum())
        whole[tuple(ids)] = total / len(ids) ** penalty
    return sorted(([*ids], score) for ids, score in whole.items())


@pytest.mark.catches("length_penalty_is_ignored", "beams_change_places_without_their_tokens")
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("eos", [END, None])
def test_a_search_wide_enough_finds_the_best_there_is(penalty, eos):
    model = sharp()
    options = GenerationConfig(max_new_tokens=4, num_beams=4**4, length_penalty=penalty, eos_id=eos)
    (found,) = found_by(model, options)
    wanted = sorted(exhaustive(model, 4, penalty, eos), key=lambda each: -each[1])
    assert [score for _, score in found] == pytest.approx([s for _, s in wanted], abs=1e-4)
    assert sorted(ids for ids, _ in found) == sorted(ids for ids, _ in wanted)
    assert found[0][0] == wanted[0][0]


@pytest.mark.catches("search_stops_at_the_next_token")
@settings(max_examples=40, deadline=None)
@given(
    beams=st.integers(1, 5),
    penalty=st.sampled_from([-1.5, 0.0, 0.6, 1.0, 2.0]),
    seed=st.integers(0, 999),
)
def test_stopping_early_changes_nothing(beams, penalty, seed):
    """The same search, which goes on to the last token whatever it has found."""
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

    (early, steps), (whole, all_steps) = run(True), run(False)
    assert steps <= all_steps == 9
    kept = whole.scores > -torch.inf
    torch.testing.assert_close(early.scores[kept], whole.scores[kept])
    assert torch.equal(early.tokens[kept], whole.tokens[kept])


def test_a_search_ends_once_nothing_better_can_come():
    """An end that is almost certain: one step, not fifty."""
    options = GenerationConfig(max_new_tokens=50, num_beams=1, eos_id=END)
    search = BeamSearch(1, options, torch.device("cpu"))
    search.advance(torch.tensor([[9.0, 0.0, 0.0]]).log_softmax(-1))
    assert search.is_done()


@pytest.mark.catches("beams_continue_from_the_first_row")
@pytest.mark.parametrize("position", ["rotary", "learned", "alibi"])
def test_each_prompt_of_a_batch_gets_what_it_gets_alone(position):
    model = tiny_model(position=position)
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    options = {"num_beams": 4, "eos_id": 7, "length_penalty": 0.8}
    together = model.generate(prompts, 9, **options)
    alone = [model.generate([prompt], 9, **options)[0] for prompt in prompts]
    assert together == alone
    one = model.generate(torch.tensor([prompts[0]]), 9, **options)[0].tolist()
    assert one[: len(alone[0])] == alone[0]
    assert set(one[len(alone[0]) :]) <= {7}


def test_sources_of_a_batch_get_what_they_get_alone():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    sources = [[3, 1, 4, 1, 5], [9, 2], [6]]
    options = {"num_beams": 3, "eos_id": 7, "start_id": 2}
    together = model.generate(sources, 8, **options)
    assert together == [model.generate([each], 8, **options)[0] for each in sources]
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
    """Log-probability of a target, from one whole pass."""
    logits = model(torch.tensor([source]), torch.tensor([[start, *target[:-1]]]))[0].detach()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": 2, "temperature": 0.7}, "set temperature=0, not 0.7"),
        ({"num_beams": 2, "top_k": 3}, "num_beams=2 samples nothing; leave top_k out"),
    ],
)
def test_what_does_not_go_with_a_search_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model().generate([[1]], 3, **options)


def diverse(model, options):
    """Groups of beams by plain lists: each ends where it may, what earlier groups took costs."""
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
            candidates.sort(key=lambda each: -each[1])
            running[group] = []
            for place, (ids, score) in enumerate(candidates[: 2 * width]):
                if ids[-1] == options.eos_id or step == options.max_new_tokens:
                    if place < width:
                        ended[group].append((ids, score / len(ids) ** options.length_penalty))
                elif len(running[group]) < width:
                    running[group].append((ids, score))
            for ids, _ in candidates[:width]:
                taken[ids[-1]] += 1
    best = [sorted(each, key=lambda e: -e[1])[:width] for each in ended]
    return sorted((each for group in best for each in group), key=lambda each: -each[1])


@pytest.mark.parametrize("penalty", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("eos", [END, None])
def test_groups_of_beams_differ_as_the_definition_says(penalty, eos):
    model = sharp()
    options = GenerationConfig(
        max_new_tokens=5, num_beams=6, num_beam_groups=3, diversity_penalty=penalty, eos_id=eos
    )
    (found,) = found_by(model, options)
    wanted = diverse(model, options)
    assert [score for _, score in found] == pytest.approx([s for _, s in wanted], abs=1e-4)
    if penalty:
        assert [ids for ids, _ in found] == [ids for ids, _ in wanted]
    if penalty == 4 and eos is None:  # it outweighs every difference of the model
        assert len({ids[0] for ids, _ in found}) == 3


def test_the_length_of_gnmt():
    """((5 + length) / 6) ** penalty, Wu et al. 2016, equation 14."""
    model = sharp()
    options = {"max_new_tokens": 4, "num_beams": 4**4, "eos_id": END}
    (sums,) = found_by(model, GenerationConfig(length_penalty=0.0, **options))
    (found,) = found_by(
        model, GenerationConfig(length_penalty=0.6, length_normalization="gnmt", **options)
    )
    wanted = {tuple(ids): score / ((5 + len(ids)) / 6) ** 0.6 for ids, score in sums}
    assert {tuple(ids): score for ids, score in found} == pytest.approx(wanted, abs=1e-4)
    assert [score for _, score in found] == pytest.approx(
        sorted(wanted.values(), reverse=True), abs=1e-4
    )
