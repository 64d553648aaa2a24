"""Drafts of the first layers: the same text as without, from shared weights and a shared cache."""

import pytest
import torch

from miniformer import Seq2SeqTransformer, cli
from miniformer.checkpoint.directory import save_directory
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput, generate, stream
from miniformer.generation.inputs import PromptBatch
from miniformer.generation.layer_draft import parse_layers
from miniformer.generation.loop import prefill
from miniformer.generation.partial import PartialPass
from miniformer.generation.runtime import PlainRuntime
from miniformer.generation.speculative import Speculation
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

SHAPES = {
    "rotary": {},
    "learned": {"position": "learned", "norm": "rmsnorm"},
    "alibi": {"position": "alibi"},
    "post": {"pre_norm": False, "embedding_norm": True},
    "windows": {"sliding_window": 4, "window_pattern": "LG"},
    "dynamic": {"rotary_scaling": {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 8}},
}
GREEDY = GenerationConfig(max_new_tokens=12, temperature=0.0)


@pytest.mark.catches("other_layers_read_new_columns", "partial_pass_keeps_one_token")
@pytest.mark.parametrize(
    ("shape", "cache"),  # None: the kernels
    [*((shape, cache) for shape in SHAPES for cache in (None, "full")), ("rotary", "int8")],
)
def test_greedy_text_is_that_without_a_draft(shape, cache):
    model = tiny_model(n_layers=3, **SHAPES[shape])
    options = GREEDY.override({"cache_kind": cache})
    inputs = [GenerationInput([1, 2, 3, 4, 5, 6]), GenerationInput([7])]
    plain = generate(model, inputs, options)
    for num_layers, num_draft_tokens in ((1, 2), (2, 5)):
        speculation = Speculation(num_layers=num_layers, num_draft_tokens=num_draft_tokens)
        result = generate(model, inputs, options, speculation=speculation)
        assert [item.tokens for item in result] == [item.tokens for item in plain]
        for item, reference in zip(result, plain, strict=True):
            assert item.logprobs == pytest.approx(reference.logprobs, abs=1e-4)
        stats = speculation.stats
        assert stats.num_passes + stats.num_accepted_tokens == stats.num_generated_tokens
        if shape == "rotary":
            assert stats.num_draft_tokens > stats.num_accepted_tokens > 0


@pytest.mark.catches("draft_skips_the_final_norm")
@pytest.mark.parametrize("cache", [None, "full"])
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "dynamic"])
def test_the_draft_is_a_model_of_the_first_layers(shape, cache):
    """Logits of the draft are those of a shorter model with the same weights."""
    model = tiny_model(n_layers=3, **SHAPES[shape])
    shorter = tiny_model(n_layers=2, **SHAPES[shape])
    names = shorter.state_dict().keys()
    shorter.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    ids, token = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([9])
    with torch.inference_mode():
        state = prefill(model, PromptBatch(ids), GREEDY.override({"cache_kind": cache}))
        logits = [state.runtime.step_layers(token, 2) for _ in range(2)]
        for n in (1, 2):
            expected = shorter(torch.cat((ids, token.expand(1, n)), 1))[:, -1]
            torch.testing.assert_close(logits[n - 1], expected, rtol=1e-4, atol=3e-5)


def test_layers_of_a_decoder_draft_with_its_source():
    model = tiny_model(model=Seq2SeqTransformer, causal=False, n_layers=2, n_decoder_layers=3)
    inputs = [GenerationInput([2], [3, 1, 4]), GenerationInput([2], [9])]
    for cache in (None, "full"):
        options = GREEDY.override({"cache_kind": cache})
        plain = generate(model, inputs, options)
        result = generate(model, inputs, options, speculation=Speculation(num_layers=2))
        assert [item.tokens for item in result] == [item.tokens for item in plain]


def test_constraints_of_logits_hold_and_streams_are_drafted():
    model = tiny_model(n_layers=2)
    options = GREEDY.override({"no_repeat_ngram_size": 2, "eos_id": 5})
    prompt, speculation = GenerationInput([1, 2]), Speculation(num_layers=1)
    result = [*stream(model, prompt, options, speculation=speculation)]
    assert result == generate(model, [prompt], options)[0].tokens


def test_a_step_after_partial_steps_of_other_layers_is_an_error():
    partial = PartialPass(torch.zeros(1, 1, 4), 2)
    with pytest.raises(ValueError, match="read by 2 layers, not 1"):
        PartialPass.extend(partial, partial.hidden, 1)


def test_append_may_have_no_more_tokens_than_the_partial_steps():
    model = tiny_model(n_layers=2)
    with torch.inference_mode():
        for cache in (None, "full"):
            options = GREEDY.override({"cache_kind": cache})
            state = prefill(model, PromptBatch(torch.tensor([[1, 2, 3]])), options)
            state.runtime.step_layers(torch.tensor([4]), 1)
            logits = state.runtime.append(torch.tensor([[4]]))
            expected = model(torch.tensor([[1, 2, 3, 4]]))[:, -1:]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=3e-5)
            assert isinstance(state.runtime, PlainRuntime)
            assert state.runtime.num_columns == 4


def test_the_command_and_python_draft_with_layers(tmp_path, capsys):
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=258, max_seq_len=64, n_layers=2)
    generation = GenerationConfig(max_new_tokens=10)
    m = Pipeline(model, tokenizer, task=LanguageModeling(), generation=generation)
    plain = m.generate("ab", temperature=0.0)
    assert m.generate("ab", temperature=0.0, draft="layers:1") == plain
    speculation = Speculation.from_draft("layers:1")
    assert (speculation.num_layers, speculation.num_draft_tokens) == (1, 3)
    save_directory(
        tmp_path / "model",
        model=model,
        tokenizer=tokenizer,
        model_card="# x\n",
        task=m.task.settings(),
        generation=generation,
    )
    arguments = ["generate", str(tmp_path / "model"), "ab", "--temperature", "0", "--draft"]
    assert cli.main([*arguments, "layers:1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"ab{plain}\n"
    assert "draft tokens accepted" in captured.err
    assert cli.main([*arguments, "layers:2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "draft layers:2: the model has 2 layers; N must be 1 to 1" in captured.err


@pytest.mark.parametrize("draft", ["layers:", "layers:two", "layers:-1", "layers:1.5"])
def test_the_number_of_layers_must_be_a_number(draft):
    with pytest.raises(UserError, match="must be a number of layers, not"):
        parse_layers(draft)


def test_layers_that_a_model_does_not_have_are_one_error():
    inputs = [GenerationInput([1])]
    with pytest.raises(UserError, match="layers:1: the model has 1 layers; a draft needs at least"):
        generate(tiny_model(n_layers=1), inputs, GREEDY, speculation=Speculation(num_layers=1))
    with pytest.raises(UserError, match="layers:0: the model has 3 layers; N must be 1 to 2"):
        generate(tiny_model(n_layers=3), inputs, GREEDY, speculation=Speculation(num_layers=0))
    with pytest.raises(UserError, match="draft and num_layers are two drafts"):
        Speculation(tiny_model(), num_layers=1)
