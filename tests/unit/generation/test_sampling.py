import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.loop import DecodingState
from miniformer.generation.sampling import sample_next_token, sampling_distribution
from miniformer.generation.speculative import Speculation
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model


def frequencies(logits, options, draws=4000):
    """Frequency of each sampled token."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits)[None].expand(draws, -1)
    tokens = sample_next_token(
        rows, options, torch.rand(draws, generator=generator, dtype=torch.float64)
    )
    return torch.bincount(tokens, minlength=len(logits)) / draws


def by_definition(logits, options):
    """Reference distribution: temperature, then top-k, then top-p, with Python lists."""
    scores = [score / options.temperature for score in logits]
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    allowed = order[: options.top_k or len(order)]
    weights = {token: float(torch.tensor(scores[token]).exp()) for token in allowed}
    total, before, nucleus = sum(weights.values()), 0.0, {}
    for token in allowed:
        if options.top_p is None or before < options.top_p:
            nucleus[token] = weights[token]
        before += weights[token] / total
    return [nucleus.get(token, 0.0) / sum(nucleus.values()) for token in range(len(scores))]


@pytest.mark.catches("top_p_is_dropped")
@settings(max_examples=40)
@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=8, unique_by=lambda x: round(x, 2)),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([None, 1, 3, 100]),
    st.sampled_from([None, 0.1, 0.6, 0.9, 1.0]),
)
def test_sampling_frequencies_match_the_distribution(logits, temperature, top_k, top_p):
    options = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = torch.tensor(by_definition(logits, options))
    drawn = frequencies(logits, options)
    assert torch.all(drawn[expected == 0] == 0), "a token was drawn that was filtered out"
    torch.testing.assert_close(drawn, expected, atol=0.05, rtol=0)


LAST = 1 - 2**-53  # the largest number below 1
SHARES = [0.25, 0.0, 0.5, 0.25]


@pytest.mark.catches("sampling_is_one_token_off")
@pytest.mark.parametrize(
    ("number", "token"),
    [(0.0, 0), (0.2499, 0), (0.25, 2), (0.5, 2), (0.7499, 2), (0.75, 3), (LAST, 3)],
)
def test_sampling_inverts_the_cumulative_distribution(number, token):
    """Probabilities are powers of two, so sums are exact; zeros are not sampled."""
    logits = torch.tensor([SHARES]).log()
    uniform = torch.tensor([number], dtype=torch.float64)
    assert sample_next_token(logits, GenerationConfig(), uniform).tolist() == [token]


@pytest.mark.catches("a_tiny_top_p_leaves_no_token")
@pytest.mark.parametrize("top_p", [1e-30, 1e-125, 5e-324])
def test_the_most_likely_token_remains_with_any_top_p(top_p):
    options = GenerationConfig(temperature=1.0, top_p=top_p)
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    assert sample_next_token(logits, options).tolist() == [1, 0]
    assert sampling_distribution(logits, options).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("options", [{"top_p": 0.6}, {"top_k": 2}, {"min_p": 0.5}, {}])
@pytest.mark.parametrize("size", [4, 1000])
def test_sampling_of_the_largest_uniform_number_is_an_allowed_token(options, size):
    """Rounding of the cumulative sum must not select a masked token."""
    options = GenerationConfig(**options)
    logits = torch.linspace(5, -5, size).repeat(3, 1)
    logits[:, -1] = -torch.inf
    numbers = torch.tensor([LAST, 1.0, 0.0], dtype=torch.float64)
    for token, shown in zip(
        sample_next_token(logits, options, numbers).tolist(),
        sampling_distribution(logits, options),
        strict=True,
    ):
        assert shown[token] > 0


PROMPTS = [[1, 2, 3], [1, 2, 3], [4], [5, 6, 7, 8, 9], [1, 2, 3], [2], [30] * 7, [1, 2, 3]]


@pytest.mark.catches("rows_share_one_generator", "rows_are_sampled_alike")
@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7, "top_k": 9}, {"top_p": 0.9}, {"eos_id": 5, "min_p": 0.01},
                {"context_shift": True}],
)  # fmt: skip
def test_sampling_of_a_row_depends_on_its_index_and_seed_only(monkeypatch, kernels, options):
    """Samples are independent of the batch size and of the other rows."""
    monkeypatch.setenv("MINIFORMER_KERNELS", kernels)
    model = tiny_model()
    options = {"max_new_tokens": 12, "seed": 3, **options}
    full = model.generate(PROMPTS, **options)
    for size in (1, 2, 5):
        assert model.generate(PROMPTS[:size], **options) == full[:size]
    other_prompts = [[9] if number != 4 else prompt for number, prompt in enumerate(PROMPTS)]
    assert model.generate(other_prompts, **options)[4] == full[4]
    same = [full[number] for number, prompt in enumerate(PROMPTS) if prompt == [1, 2, 3]]
    assert len(set(map(tuple, same))) == len(same) == 4, "the same prompt, other samples"
    assert model.generate(torch.tensor([[1, 2, 3]] * 2), **options)[:, :15].tolist() == [
        row + [options.get("eos_id", 0)] * (max(map(len, full[:2])) - len(row)) for row in full[:2]
    ]


@pytest.mark.catches("rows_are_sampled_alike")
def test_sampling_depends_on_the_prompt_and_sample_index():
    model = tiny_model()
    three = model.generate(PROMPTS, 8, seed=1, num_return_sequences=3)
    assert model.generate(PROMPTS[:2], 8, seed=1, num_return_sequences=3) == three[:6]
    assert model.generate(PROMPTS, 8, seed=1) == three[::3]
    assert len(set(map(tuple, three[:3]))) == 3


@pytest.mark.catches("speculated_rows_are_sampled_alike")
def test_speculative_sampling_depends_on_row_index_and_seed_only():
    model, options = tiny_model(), GenerationConfig(max_new_tokens=8, seed=1)
    how = {"speculation": Speculation(tiny_model(seed=9))}
    inputs = [GenerationInput(prompt) for prompt in PROMPTS]
    result = [output.tokens for output in generate(model, inputs, options, **how)]
    assert [output.tokens for output in generate(model, inputs[:2], options, **how)] == result[:2]
    assert result[0] != result[1]


@pytest.mark.catches("rows_are_sampled_alike")
def test_sampling_does_not_depend_on_the_batch(monkeypatch):
    """A pipeline sorts prompts by length and generates in batches."""
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    pipeline = Pipeline(model, tokenizer, task=LanguageModeling(), generation=GenerationConfig())
    prompts, how = ["abc", "a", "a", "abcde", "a"], {"max_new_tokens": 6, "seed": 5}
    texts = pipeline.generate(prompts, **how)
    monkeypatch.setattr("miniformer.tasks.common.text_generation._BATCH_SIZE", 2)
    assert pipeline.generate(prompts, **how) == texts
    assert pipeline.generate(prompts[:3], **how) == texts[:3]
    assert pipeline.generate("abc", **how) == texts[0] == "".join(pipeline.stream("abc", **how))
    assert len({texts[1], texts[2], texts[4]}) == 3


def test_temperature_zero_is_greedy():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 4.9]])
    assert sample_next_token(logits, GenerationConfig(temperature=0)).tolist() == [1, 0]


@pytest.mark.catches("seed_is_ignored")
def test_sampling_repeats_with_its_seed():
    model = tiny_model()
    first = model.generate([[1, 2, 3]], 20, seed=1)
    assert model.generate([[1, 2, 3]], 20, seed=1) == first
    assert model.generate([[1, 2, 3]], 20, seed=2) != first
    assert model.generate([[1, 2, 3]], 20) != model.generate([[1, 2, 3]], 20)


@pytest.mark.catches("end_of_text_is_part_of_it")
def test_generate_ends_a_row_at_eos_and_continues_the_others():
    model = tiny_model()
    prompts = [[1, 2], [3, 4], [5, 6]]
    free = model.generate(prompts, 8, temperature=0)
    # A token that ends some answers, at different positions, but not all answers.
    eos = next(t for row in free for t in row[3:] if any(t not in text[2:] for text in free))
    ended = model.generate(prompts, 8, temperature=0, eos_id=eos)
    for before, after in zip(free, ended, strict=True):
        new = before[2:]
        assert after == before[:2] + (new[: new.index(eos)] if eos in new else new)
    tensor = model.generate(torch.tensor(prompts), 8, temperature=0, eos_id=eos)
    assert tensor.shape == (3, 10)
    for row, text in zip(tensor.tolist(), ended, strict=True):
        assert row == text + [eos] * (10 - len(text))


def test_generate_stops_when_every_row_has_ended(monkeypatch):
    model = tiny_model()
    eos = model.generate([[1, 2]], 1, temperature=0)[0][2]
    monkeypatch.setattr(DecodingState, "step", None)  # the first token ends it
    assert model.generate(torch.tensor([[1, 2]]), 9, temperature=0, eos_id=eos).tolist() == [
        [1, 2, eos]
    ]


@pytest.mark.catches("dropout_stays_on_in_generation")
@pytest.mark.parametrize("hooks", [0, 1], ids=["kernels", "model"])
def test_generate_uses_eval_mode_and_restores_it(hooks):
    model, ids = tiny_model(dropout=0.5), [1, 2]
    for _ in range(hooks):  # with one, the kernels leave decoding to the model
        model.layers[0].register_forward_hook(lambda *arguments: None)
    for _ in range(9):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    model.train()
    assert model.generate(torch.tensor([[1, 2]]), 9, temperature=0).tolist() == [ids]
    assert all(module.training for module in model.modules())


@pytest.mark.catches("one_token_more_than_there_is_room_for")
@pytest.mark.parametrize("options", [{"temperature": 0}, {"num_beams": 2}, {"seed": 0}])
@pytest.mark.parametrize(("length", "new"), [(1, 1), (1, 7), (7, 1), (5, 3)])
def test_generate_reaches_max_new_tokens_exactly(length, new, options):
    """One-token prompts, one new token, and sequences of max_seq_len tokens."""
    model = tiny_model(max_seq_len=8)
    prompts = [[1 + n for n in range(length)], [2] * length]
    for inputs in (prompts, prompts[:1], torch.tensor(prompts)):
        rows = model.generate(inputs, new, **options)
        assert [len(row) for row in rows] == [length + new] * len(inputs)
    if options == {"temperature": 0}:
        expected = list(prompts[0])
        for _ in range(new):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
        assert model.generate(prompts, new, **options)[0] == expected
    room = 8 - length
    with pytest.raises(
        UserError, match=f"ask for at most {room} new tokens, or set context_shift=true"
    ):
        model.generate(prompts, room + 1, **options)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 31]], {}, "token id 31 is outside the model's vocabulary, 0 to 30"),
        ([[-1]], {}, "token id -1 is outside"),
        ([[1]], {"eos_id": 31}, "eos_id=31 is outside the model's vocabulary, 0 to 30"),
        ([[1] * 30], {}, "a prompt of 30 tokens and max_new_tokens=5 exceed max_seq_len=32; "
                         "ask for at most 2 new tokens"),
        ([[1] * 40], {}, "shorten the prompt"),
        ([[1]], {"temperature": -0.1}, "temperature must be at least 0.0"),
        (torch.zeros(1, 0, dtype=torch.long), {}, "the prompt is empty"),
        (torch.zeros(1, 2), {}, "prompts must be"),
    ],
)  # fmt: skip
def test_generate_rejects_invalid_prompts_and_options(prompts, options, message):
    with pytest.raises(UserError, match=message):
        tiny_model().generate(prompts, 5, **options)


def test_generate_without_prompts_returns_no_texts():
    assert tiny_model().generate([], 5) == []


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-40, 5e-324])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_smallest_temperature_is_greedy(temperature, options):
    logits = torch.tensor([[0.0, 50.0, 10.0], [5.0, -1e4, 4.9]])
    options = GenerationConfig(temperature=temperature, **options)
    assert sample_next_token(logits, options).tolist() == [1, 0]


@pytest.mark.parametrize(
    "prompts", [[1, 2, 3], [[1, True]], [[1.5]], [["a"]], [None], torch.tensor([[True]])]
)
def test_generate_rejects_prompts_that_are_no_lists_of_ids(prompts):
    with pytest.raises(UserError, match="prompts must be"):
        tiny_model().generate(prompts, 2)


def test_generate_of_an_empty_tensor_returns_an_empty_tensor():
    assert tiny_model().generate([], 2) == []
    assert tiny_model().generate(torch.zeros(0, 3, dtype=torch.long), 2).shape == (0, 3)


@pytest.mark.parametrize("field", ["input_dim", "output_dim"])
def test_generate_rejects_a_model_without_tokens(field):
    with pytest.raises(UserError, match=f"generate needs {field}=null"):
        tiny_model(**{field: 5}).generate([[1]], 2)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_generate_accepts_prompts_of_any_integer_type(kind):
    model = tiny_model()
    prompt = torch.tensor([[1, 2, 3]])
    expected = model.generate(prompt, 4, temperature=0)
    assert torch.equal(model.generate(prompt.to(kind), 4, temperature=0), expected)


@pytest.mark.catches("model_is_left_in_eval_mode")
def test_generate_restores_the_mode_of_every_module():
    model = tiny_model().train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    model.generate([[1]], 2)
    assert [module.training for module in model.modules()] == modes


def sliding(model, prompt, new):
    """Greedy reference without a cache, with truncation of the context."""
    max_length = model.config.max_seq_len
    seen = prompt if len(prompt) <= max_length else prompt[-(max_length // 2) :]
    text = []
    for _ in range(new):
        text.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
        seen = [*seen, text[-1]]
        if len(seen) > max_length:
            seen = seen[-(max_length // 2) :]
    return text


@pytest.mark.catches("all_rows_slide_when_one_is_full")
@pytest.mark.parametrize(
    "changes",
    [{}, {"position": "learned"}, {"sliding_window": 3},
     {"rotary_scaling": {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 4}}],
)  # fmt: skip
def test_context_overflow_truncate_drops_the_oldest_tokens(changes):
    model = tiny_model(max_seq_len=8, **changes)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 9]]
    if "rotary_scaling" in changes:  # scaling depends on the final length of a text
        prompts = prompts[2:]
        expected = [
            model.generate([prompt], 21, temperature=0, context_shift=True)[0] for prompt in prompts
        ]
    else:
        expected = [prompt + sliding(model, prompt, 21) for prompt in prompts]
    assert model.generate(prompts, 21, temperature=0, context_shift=True) == expected
    single = model.generate(torch.tensor([prompts[-1]]), 21, temperature=0, context_shift=True)
    assert single[0].tolist() == expected[-1]
    end = expected[-1][-3]
    ended = model.generate(prompts, 21, temperature=0, context_shift=True, eos_id=end)
    for prompt, text, full in zip(prompts, ended, expected, strict=True):
        new = full[len(prompt) :]
        assert text == prompt + (new[: new.index(end)] if end in new else new)
    beams = model.generate(prompts[-2:], 15, num_beams=3, context_shift=True)
    assert beams == [
        model.generate([p], 15, num_beams=3, context_shift=True)[0] for p in prompts[-2:]
    ]


def test_context_overflow_is_an_error_by_default():
    model = tiny_model(max_seq_len=8)
    with pytest.raises(UserError, match="or set context_shift=true to drop the oldest tokens"):
        model.generate([[1] * 9], 1)
