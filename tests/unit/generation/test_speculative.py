"""Speculative decoding changes the speed of generation, but not its output distribution."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Seq2SeqTransformer, cli
from miniformer.checkpoint.directory import save_directory
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput, generate, stream
from miniformer.generation.sampling import sampling_distribution
from miniformer.generation.speculative import PromptLookupDraft, Speculation, _accept_or_resample
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

SHAPES = {
    "rotary": {},
    "learned": {"position": "learned"},
    "windows": {"sliding_window": 4, "window_pattern": "LG"},
    "dynamic": {"rotary_scaling": {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 8}},
}


def near(model, amount=0.02):
    """A draft model whose tokens are often accepted."""
    draft = type(model)(model.config).eval()
    draft.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return draft


@pytest.mark.catches("every_draft_token_is_accepted")
@settings(max_examples=25)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.lists(st.integers(0, 30), min_size=1, max_size=10),
    st.sampled_from(["near", "far", "lookup"]),
    st.integers(1, 6),
    st.sampled_from([{}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.5}, {"eos_id": 5}]),
)
def test_speculative_greedy_text_is_the_same(shape, prompt, kind, num_draft_tokens, extra):
    model = tiny_model(**SHAPES[shape])
    draft = {"near": near(model), "far": tiny_model(seed=9), "lookup": None}[kind]
    options = GenerationConfig(max_new_tokens=20, temperature=0.0, **extra)
    speculation = Speculation(draft, num_draft_tokens=num_draft_tokens)
    (plain,) = generate(model, [GenerationInput(prompt)], options)
    (result,) = generate(model, [GenerationInput(prompt)], options, speculation=speculation)
    assert result.tokens == plain.tokens
    assert result.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    stats = speculation.stats
    assert stats.num_generated_tokens == len(plain.logprobs)
    assert stats.num_accepted_tokens <= stats.num_draft_tokens
    assert stats.num_passes + stats.num_accepted_tokens == stats.num_generated_tokens
    if kind == "near" and not extra and num_draft_tokens > 1:
        assert stats.num_passes < stats.num_generated_tokens


@pytest.mark.catches("rejected_draft_leaves_the_distribution_whole")
def test_speculative_acceptance_samples_from_the_distribution_of_the_model():
    """For any draft distribution: counts are within five standard deviations."""
    target_probs, draft_probs = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    generator, draws = torch.Generator().manual_seed(0), 4000
    counts = torch.zeros(3)
    for _ in range(draws):
        draft_token = torch.multinomial(draft_probs, 1, generator=generator)[0]
        counts[_accept_or_resample(target_probs, draft_token, draft_probs, generator)[0]] += 1
    deviation = (draws * target_probs[0] * (1 - target_probs[0])).sqrt()
    assert ((counts - draws * target_probs[0]).abs() < 5 * deviation).all()


@pytest.mark.catches("drafts_have_the_probabilities_of_others")
@pytest.mark.parametrize("kind", ["near", "far", "lookup", "layers"])
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "top_k": 3, "presence_penalty": 0.5}]
)
def test_speculative_sampling_has_the_same_distribution(kind, sampling):
    """Chi-square test of three tokens against the probabilities of the model."""
    num_layers = 1 if kind == "layers" else None
    shape = {"vocab_size": 4, "n_layers": 2 if num_layers else 1, "d_model": 8, "n_heads": 2}
    model = tiny_model(**shape)
    drafts = {"near": near(model, 0.1), "far": tiny_model(seed=9, **shape)}
    prompt, draws = [1, 2, 1], 500
    options = GenerationConfig(max_new_tokens=3, seed=0, num_return_sequences=draws, **sampling)
    speculation = Speculation(drafts.get(kind), num_draft_tokens=2, num_layers=num_layers)
    result = generate(model, [GenerationInput(prompt)], options, speculation=speculation)
    assert speculation.stats.num_draft_tokens > draws / 2
    expected = torch.zeros(4, 4, 4)
    for cell in itertools.product(range(4), repeat=3):  # by the chain rule, token by token
        expected[cell] = 1.0
        for n in range(3):
            logits = model(torch.tensor([[*prompt, *cell[:n]]]))[:, -1].detach()
            if "presence_penalty" in sampling:
                logits[0, [*set(cell[:n])]] -= 0.5
            expected[cell] *= sampling_distribution(logits, options)[0, cell[n]]
    counts = torch.zeros(4, 4, 4)
    for item in result:
        counts[tuple(item.tokens)] += 1
    assert float(counts[expected == 0].sum()) == 0
    order = expected.flatten().argsort(descending=True)
    expected, counts = draws * expected.flatten()[order], counts.flatten()[order]
    num_cells = int((expected >= 5).sum())  # pools rare cells, as the test requires
    expected = torch.cat((expected[:num_cells], expected[num_cells:].sum()[None]))
    counts = torch.cat((counts[:num_cells], counts[num_cells:].sum()[None]))
    nonzero = expected > 0
    chi2 = float(((counts - expected) ** 2 / expected)[nonzero].sum())
    freedom = int(nonzero.sum()) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5 + 4  # fails by chance once in thousands


def test_speculative_decoding_of_seq2seq():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    inputs = [GenerationInput([2], [3, 1, 4]), GenerationInput([2], [9])]
    options = GenerationConfig(max_new_tokens=15, temperature=0.0)
    plain = generate(model, inputs, options)
    for draft in (near(model), None):
        result = generate(model, inputs, options, speculation=Speculation(draft))
        assert [item.tokens for item in result] == [item.tokens for item in plain]


def test_speculative_decoding_of_a_stream():
    model = tiny_model()
    options = GenerationConfig(max_new_tokens=12, temperature=0.0)
    result = list(
        stream(model, GenerationInput([1, 2]), options, speculation=Speculation(near(model)))
    )
    assert result == generate(model, [GenerationInput([1, 2])], options)[0].tokens


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 9, 2, 3, 4], [9, 2]),  # an n-gram of three tokens
        ([7, 4, 5, 6, 4], [5, 6]),  # one token
        ([4, 1, 4, 2, 4], [2, 4]),  # the last occurrence
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_prompt_lookup_draft(tokens, expected):
    result, probs = PromptLookupDraft().propose(torch.tensor(tokens), 2)
    assert result.tolist() == expected
    assert probs is None


def pipeline(**changes):
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=258, max_seq_len=64, **changes)
    generation = GenerationConfig(max_new_tokens=20)
    return Pipeline(model, tokenizer, task=LanguageModeling(), generation=generation)


@pytest.mark.catches("speculation_answers_with_every_second_text")
def test_speculative_decoding_of_a_pipeline_and_the_command(tmp_path, capsys):
    m, small = pipeline(), pipeline(seed=3)
    plain = m.generate("ab", temperature=0.0)
    for draft in (small, "lookup", Speculation(small.model, num_draft_tokens=2)):
        assert m.generate("ab", temperature=0.0, draft=draft) == plain
        assert "".join(m.stream("ab", temperature=0.0, draft=draft)) == plain
    for name, item in (("large", m), ("small", small)):
        save_directory(
            tmp_path / name,
            model=item.model,
            tokenizer=item.tokenizer,
            model_card="# x\n",
            task=item.task.settings(),
            generation=item.generation,
        )
    for draft in ("lookup", str(tmp_path / "small")):
        arguments = ["generate", str(tmp_path / "large"), "ab", "c", "--temperature", "0"]
        assert cli.main([*arguments, "--draft", draft]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"ab{plain}\nc{m.generate('c', temperature=0.0)}\n"
        assert re.search(
            r"tokens per pass; \d+ of \d+ draft tokens accepted .* as fast as without", captured.err
        )


def test_speculative_decoding_rejects_unsupported_settings():
    model = tiny_model()
    options = GenerationConfig(max_new_tokens=5)
    with pytest.raises(UserError, match="vocabulary of 7 tokens, the model one of 31"):
        generate(
            model,
            [GenerationInput([1])],
            options,
            speculation=Speculation(tiny_model(vocab_size=7)),
        )
    decoder = tiny_model(model=Seq2SeqTransformer, causal=False)
    with pytest.raises(UserError, match="must both be causal, or both seq2seq"):
        generate(model, [GenerationInput([1])], options, speculation=Speculation(decoder))
    beams = GenerationConfig(max_new_tokens=5, num_beams=2)
    with pytest.raises(UserError, match="num_beams=2 cannot be speculated; set num_beams=1"):
        generate(model, [GenerationInput([1])], beams, speculation=Speculation())
    with pytest.raises(UserError, match="num_draft_tokens must be at least 1, not 0"):
        Speculation(num_draft_tokens=0)
    with pytest.raises(UserError, match='a Speculation, "lookup" or "layers:N", not 3'):
        pipeline().generate("a", draft=3)
