"""Logits processors against plain loops, and against those of transformers."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from miniformer import Seq2SeqTransformer, registry
from miniformer.config import ConfigError, GenerationConfig, UserError
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.logits_processors import apply_processors, build_processors
from miniformer.generation.sampling import sample_next_token
from tests.kit import tiny_model

V = 7
TEXTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=9)


def changed(options, texts, logits, prompt_length=0):
    """Logits after the processors, for left-padded rows."""
    max_length = max(map(len, texts))
    rows = torch.tensor([[-1] * (max_length - len(text)) + text for text in texts])
    return apply_processors(build_processors(options, prompt_length, ()), rows, logits, 1)


@pytest.mark.catches("repetition_penalty_rewards_unlikely_tokens")
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from([0.5, 1.3]), st.integers(0, 99))
def test_repetition_penalty(texts, penalty, seed):
    logits = torch.randn(len(texts), V, generator=torch.Generator().manual_seed(seed))
    result = changed(GenerationConfig(repetition_penalty=penalty), texts, logits)
    for row, text in enumerate(texts):
        processor = reference.RepetitionPenaltyLogitsProcessor(penalty)
        expected = processor(torch.tensor([text]), logits[row : row + 1].clone())
        torch.testing.assert_close(result[row : row + 1], expected)


@pytest.mark.catches("penalties_count_the_prompt")
@given(st.lists(TEXTS, min_size=1, max_size=3), st.floats(-1, 2), st.floats(-1, 2))
def test_frequency_and_presence_penalties_count_generated_tokens(texts, frequency, presence):
    """logit - count * frequency - (count > 0) * presence, as OpenAI documents it."""
    prompt = 3
    options = GenerationConfig(frequency_penalty=frequency, presence_penalty=presence)
    rows = [[1, 2, 3, *text] for text in texts]
    rows = [row[: min(map(len, rows))] for row in rows]
    result = changed(options, rows, torch.zeros(len(rows), V), prompt)
    for row, text in enumerate(rows):
        for token in range(V):
            count = text[prompt:].count(token)
            expected = -count * frequency - (count > 0) * presence
            assert float(result[row, token]) == pytest.approx(expected, abs=1e-5)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(1, 4))
def test_no_repeat_ngram_size_prevents_repeated_ngrams(texts, size):
    logits = torch.zeros(len(texts), V)
    options = GenerationConfig(no_repeat_ngram_size=size)
    try:
        result = changed(options, texts, logits)
    except UserError:  # every token is forbidden in some row
        assert size == 1
        assert any(len(set(text)) == V for text in texts)
        return
    for row, text in enumerate(texts):
        runs = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        last = text[len(text) - size + 1 :] if len(text) >= size - 1 else None
        forbidden = {t for t in range(V) if last is not None and (*last, t) in runs}
        assert {t for t in range(V) if result[row, t] == -math.inf} == forbidden
        actual = reference.NoRepeatNGramLogitsProcessor(size)(
            torch.tensor([text]), logits[row][None]
        )
        torch.testing.assert_close(result[row][None], actual)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(TEXTS, min_size=1, max_size=4))
def test_bad_words_are_never_completed(texts, bad):
    logits = torch.zeros(len(texts), V)
    bad = [run[:3] for run in bad]
    forbidden = [
        {run[-1] for run in bad if text[len(text) - len(run) + 1 :] == run[:-1]
         and len(text) >= len(run) - 1}
        for text in texts
    ]  # fmt: skip
    assume(all(len(item) < V for item in forbidden))  # a text that nothing can follow is refused
    result = changed(GenerationConfig(bad_words_ids=bad), texts, logits)
    for row, expected in enumerate(forbidden):
        assert {t for t in range(V) if result[row, t] == -math.inf} == expected
        single = reference.NoBadWordsLogitsProcessor(bad)(
            torch.tensor([texts[row]]), logits[row][None]
        )
        torch.testing.assert_close(result[row][None], single)


@pytest.mark.catches("min_p_is_of_the_whole")
@pytest.mark.parametrize("min_p", [0.05, 0.3, 1.0])
def test_min_p_keeps_tokens_near_the_largest_probability(min_p):
    torch.manual_seed(0)
    logits = torch.randn(1, V) * 2
    retained = (
        reference.MinPLogitsWarper(min_p)(torch.zeros(1, 1).long(), logits.clone()) > -math.inf
    )
    options = GenerationConfig(min_p=min_p)
    numbers = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sample_next_token(logits.expand(5000, -1), options, numbers)
    assert set(drawn.tolist()) == set(retained[0].nonzero()[:, 0].tolist())


def greedy(model, prompt, max_length, end, min_length):
    """Greedy reference without a cache; EOS is masked up to the minimum length."""
    text = []
    while len(text) < max_length:
        logits = model(torch.tensor([prompt + text]))[0, -1].detach()
        if len(text) < min_length:
            logits[end] = -math.inf
        token = int(logits.argmax())
        if token == end:
            break
        text.append(token)
    return text


def searched(model, prompt, max_length, end, min_length, beams):
    """Beam search reference without cache and early stopping."""
    running, ended = [([], 0.0)], []
    while running:
        grown = []
        for text, score in running:
            logits = model(torch.tensor([prompt + text]))[0, -1].detach().double()
            log_p = logits.log_softmax(-1)
            if len(text) < min_length:
                log_p[end] = -math.inf
            grown += [([*text, token], score + p) for token, p in enumerate(log_p.tolist())]
        grown = sorted(grown, key=lambda item: -item[1])[: 2 * beams]
        running = []
        for rank, (text, score) in enumerate(grown):
            if text[-1] == end or len(text) == max_length:
                if rank < beams and score > -math.inf:
                    ended.append((score / len(text), text))
            elif len(running) < beams:
                running.append((text, score))
    text = max(ended)[1]
    return text[:-1] if text[-1] == end else text


@pytest.mark.catches("text_may_end_one_token_early", "text_may_end_one_token_late")
@pytest.mark.parametrize("min_length", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("max_length", [1, 4, 9])
def test_min_new_tokens_masks_eos(min_length, max_length):
    if min_length > max_length:
        with pytest.raises(UserError, match=f"min_new_tokens={min_length} is above max_new_tokens"):
            tiny_model().generate([[1, 2]], max_length, min_new_tokens=min_length)
        return
    # Models of which the likeliest token at once, and later, is that which ends a text.
    for seed, prompt in ((0, [1, 2]), (1, [3]), (2, [4, 5, 6])):
        model = tiny_model(seed=seed)
        free = greedy(model, prompt, 9, None, 0)
        for end in {free[0], free[1], free[4]}:
            how = {"eos_id": end, "min_new_tokens": min_length}
            (text,) = model.generate([prompt], max_length, temperature=0, **how)
            assert text == prompt + greedy(model, prompt, max_length, end, min_length)
            (text,) = model.generate([prompt], max_length, num_beams=3, **how)
            assert text == prompt + searched(model, prompt, max_length, end, min_length, 3)


@pytest.mark.catches("stop_ids_end_nothing")
def test_stop_token_ids_end_a_text():
    model = tiny_model()
    free = model.generate([[1, 2], [3, 4], [5, 6]], 8, temperature=0)
    ends = [free[0][4], free[1][3]]
    for options in ({"eos_id": ends[0], "stop_token_ids": ends[1:]}, {"stop_token_ids": ends}):
        result = model.generate([[1, 2], [3, 4], [5, 6]], 8, temperature=0, **options)
        for before, after in zip(free, result, strict=True):
            new = before[2:]
            first = min((new.index(end) for end in ends if end in new), default=8)
            assert after == before[: 2 + first]


def test_custom_logits_processor_sees_all_tokens_and_runs_last():
    model, seen = tiny_model(), []

    def only_even(tokens, logits):
        seen.append(tokens.tolist())
        return logits.masked_fill(torch.arange(logits.shape[1]) % 2 == 1, -math.inf)

    prompts = [[1, 3, 5], [7]]
    texts = model.generate(prompts, 4, temperature=0, processors=[only_even])
    for prompt, text in zip(prompts, texts, strict=True):
        assert all(token % 2 == 0 for token in text[len(prompt) :])
    assert seen[0] == [[1, 3, 5], [-1, -1, 7]]
    assert [row[3:] for row in seen[-1]] == [text[-4:-1] for text in texts]
    assert all(
        t % 2 == 0 for t in model.generate([[7]], 4, num_beams=3, processors=[only_even])[0][1:]
    )


def test_penalties_change_the_generated_text():
    model = tiny_model()
    plain = model.generate([[1, 2, 3]], 20, temperature=0)[0]
    assert len(set(plain)) < 12  # a random model repeats itself
    penalised = model.generate([[1, 2, 3]], 20, temperature=0, presence_penalty=9.0)[0]
    assert len(set(penalised[3:])) == 20
    runs = model.generate([[1, 2, 3]], 20, temperature=0, no_repeat_ngram_size=2)[0]
    assert len({*itertools.pairwise(runs)}) == len(runs) - 1


@pytest.mark.catches("log_probabilities_are_not_normalized")
def test_generate_returns_log_probabilities():
    model = tiny_model()
    inputs = [GenerationInput([1, 2, 3]), GenerationInput([4])]
    end = model.generate([[4]], 6, temperature=0)[0][3]
    for options in ({"temperature": 0.0}, {"seed": 1}, {"seed": 1, "top_k": 2},
                    {"num_beams": 3, "length_penalty": 0.0}):  # fmt: skip
        for start, output in zip(
            inputs,
            generate(model, inputs, GenerationConfig(6, eos_id=end, **options)),
            strict=True,
        ):
            ended = [end] if len(output.logprobs) > len(output.tokens) else []
            full = [*start.input_ids, *output.tokens, *ended]
            log_p = model(torch.tensor([full]))[0].detach().log_softmax(-1)
            new = torch.tensor(full[len(start.input_ids) :])
            expected = log_p[len(start.input_ids) - 1 : -1].gather(1, new[:, None])[:, 0].tolist()
            assert output.logprobs == pytest.approx(expected, abs=1e-4)
            assert output.score == pytest.approx(sum(expected), abs=1e-3)


def test_num_return_sequences_of_each_prompt():
    model = tiny_model()
    texts = model.generate([[1, 2], [3]], 8, num_return_sequences=3, seed=0)
    assert [text[:1] for text in texts] == [[1]] * 3 + [[3]] * 3
    assert len(set(map(tuple, texts[:3]))) == 3
    tensor = model.generate(torch.tensor([[1, 2]]), 8, num_return_sequences=2, seed=0)
    assert tensor.shape == (2, 10)
    best = model.generate([[1, 2]], 8, num_beams=4, num_return_sequences=4)
    assert best[0] == model.generate([[1, 2]], 8, num_beams=4)[0]
    assert len(set(map(tuple, best))) == 4


def test_forced_tokens_begin_a_target():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    free = model.generate([[3, 1, 4]], 6, start_id=2, temperature=0)[0]
    rest = model.generate([[3, 1, 4]], 3, start_id=2, prefix=free[:3], temperature=0)[0]
    assert rest == free[3:]
    assert model.generate([[3, 1, 4]], 3, start_id=2, prefix=[9], temperature=0)[0] != free[:3]


@pytest.mark.catches("logits_that_are_nan_are_sampled")
@pytest.mark.parametrize("device", ["cpu"])
def test_nan_logits_raise_with_the_step(device):
    model = tiny_model()
    calls = []

    class Broken(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, features, embedding):
            calls.append(None)
            out = self.head(features, embedding)
            return out * math.nan if len(calls) == 3 else out

    model.head = Broken(model.head)
    for options in ({"temperature": 0}, {"num_beams": 2}):
        calls.clear()
        with pytest.raises(UserError, match="logits at new token 3 are not finite"):
            model.generate([[1]], 9, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_new_tokens": 6}, "min_new_tokens=6 is above max_new_tokens=5; lower it"),
        ({"min_p": 1.5}, "min_p must be at most 1.0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"bad_words_ids": [[]]},
         r"bad_words_ids must hold sequences of one token or more, such as \[\[17\]"),
        ({"bad_words_ids": [[31]]}, "bad_words_ids=31 is outside the model's vocabulary, 0 to 30"),
        ({"stop_token_ids": [40]}, "stop_token_ids=40 is outside the model's vocabulary, 0 to 30"),
        ({"stop_strings": ["\n"]}, "stop_strings needs a tokenizer; use a Pipeline"),
        ({"stop_strings": [""]}, "stop_strings must hold strings of one character or more"),
        ({"num_return_sequences": 2, "temperature": 0}, "would all be equal with temperature=0"),
        ({"num_return_sequences": 3, "num_beams": 2}, "is above num_beams=2"),
        ({"num_beam_groups": 2}, "num_beam_groups is an option of beam search; set num_beams"),
        ({"num_beams": 3, "num_beam_groups": 2}, "num_beam_groups=2 does not divide num_beams=3"),
        ({"num_beams": 2, "diversity_penalty": 1.0}, "set num_beam_groups to 2 or more"),
        ({"num_beams": 2, "seed": 1}, "num_beams=2 does not sample; leave seed out"),
        ({"temprature": 1}, r"unknown field 'temprature' \(did you mean 'temperature'\?\)"),
        ({"bad_words_ids": [[t] for t in range(31)], "temperature": 0},
         "no token is allowed at new token 1: bans and processors mask all tokens"),
    ],
)  # fmt: skip
def test_logits_processor_options_are_checked(options, message):
    with pytest.raises((ConfigError, UserError), match=message):
        tiny_model().generate([[1]], 5, **options)


@pytest.mark.catches("remaining_rows_continue_other_texts")
def test_finished_rows_are_removed_from_the_batch(monkeypatch):
    """Finished rows are removed without changing the others."""
    model = tiny_model()
    prompts = [[1, 2], [3, 4, 9], [5, 6], [7]]
    free = model.generate(prompts, 12, temperature=0)
    end = next(
        t for row, p in zip(free, prompts, strict=True) for t in row[len(p) :]
        if 1 <= sum(t in text[len(q) :] for text, q in zip(free, prompts, strict=True)) < 4
    )  # fmt: skip
    sizes, features = [], model.features

    def counted(inputs, *args, **options):
        sizes.append(len(inputs))
        return features(inputs, *args, **options)

    monkeypatch.setattr(model, "features", counted)
    result = model.generate(prompts, 12, temperature=0, eos_id=end)
    for before, after, prompt in zip(free, result, prompts, strict=True):
        new = before[len(prompt) :]
        assert after == prompt + (new[: new.index(end)] if end in new else new)
    assert sizes[0] == 4
    assert min(sizes) < 4


class OnlyMultiples:
    """A processor with an option that learns the length of the prompt."""

    def __init__(self, factor, *, from_prompt=False):
        self.factor, self.from_prompt = factor, from_prompt

    def make_processor(self, prompt_length):
        factor = prompt_length if self.from_prompt else self.factor

        def keep(tokens, logits):
            others = torch.arange(logits.shape[-1]) % factor != 0
            return logits.masked_fill(others, -torch.inf)

        return keep


@pytest.mark.catches("named_processors_are_ignored")
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"temperature": 0.7, "seed": 4}], ids=str
)
def test_named_processors_are_those_that_are_given(monkeypatch, options):
    monkeypatch.setitem(registry._registered, "logits_processor", {"multiples": OnlyMultiples})
    model, prompts = tiny_model(), [[1, 2, 3], [4, 5]]
    options = {"temperature": 0.0, **options} if "num_beams" not in options else options
    for setting in ({"factor": 4}, {"factor": 1, "from_prompt": True}):
        named = model.generate(
            prompts, 6, logits_processors=[{"type": "multiples", **setting}], **options
        )
        given = model.generate(prompts, 6, processors=[OnlyMultiples(**setting)], **options)
        assert named == given
        assert named != model.generate(prompts, 6, **options)


def test_unknown_processors_and_options_are_user_errors(monkeypatch):
    monkeypatch.setitem(registry._registered, "logits_processor", {"multiples": OnlyMultiples})
    with pytest.raises(ConfigError, match=r"_processors\[0\]: unknown logits processor 'mul'"):
        GenerationConfig(logits_processors=[{"type": "mul"}])
    options = GenerationConfig(logits_processors=[{"type": "multiples", "facto": 2}])
    with pytest.raises(UserError, match=r"\[0\]: multiples has no option 'facto' \(did you"):
        build_processors(options, 0)


def test_import_path_is_no_name_of_a_processor():
    """The settings of a model directory run no code of their own."""
    with pytest.raises(ConfigError, match="unknown logits processor 'os:system'; known: none"):
        GenerationConfig(logits_processors=[{"type": "os:system", "command": "true"}])
