"""The adapter for lm-evaluation-harness: its answers to calls as the harness makes them.

Without the harness (extra lm-eval, half a gigabyte) the few names that the adapter takes from it
stand in for it. `make slow` has the harness itself measure a model.
"""

import abc
import importlib.util
import sys
import types

import pytest
import torch

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
PRESENT = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture
def adapter(monkeypatch):
    if not PRESENT:
        names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
        modules = {name: types.ModuleType(name) for name in names}
        modules["lm_eval.api.model"].LM = abc.ABC
        modules["lm_eval.api.registry"].register_model = lambda name: lambda decorated: decorated
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
    import miniformer.interop.lm_eval as adapter

    yield adapter
    if not PRESENT:
        del sys.modules["miniformer.interop.lm_eval"]


def language_model():
    model = tiny_model(vocab_size=258, max_seq_len=64)
    return Pipeline(model, BYTES, task=LanguageModeling(), generation=GenerationConfig())


def requests(*arguments):
    return [types.SimpleNamespace(args=args) for args in arguments]


def log_p(m, before, text):
    """The text's log-probability, and whether it is greedy, from one full pass."""
    ids = [BYTES.eos_id, *BYTES.encode(before + text)]
    first = len(ids) - len(BYTES.encode(text))
    log_probs = m.model(torch.tensor([ids]))[0].detach().log_softmax(-1)
    positions = range(first, len(ids))
    greedy = all(int(log_probs[position - 1].argmax()) == ids[position] for position in positions)
    return float(sum(log_probs[position - 1, ids[position]] for position in positions)), greedy


@pytest.mark.catches("every_token_is_the_greedy_one", "every_continuation_is_greedy")
def test_lm_eval_loglikelihood_and_greedy_flag(adapter):
    m = language_model()
    nexts = {a: m.generate(a, max_new_tokens=1, temperature=0.0) for a in "abcdefghijklmnopqrst"}
    letter, best = next((a, text) for a, text in nexts.items() if text.isascii() and text.strip())
    texts = [("the cat", " sat"), ("", "on"), ("the ", "mat"), (letter, best)]
    actual = adapter.MiniformerLM(m).loglikelihood(requests(*texts), disable_tqdm=True)
    # Spaces at the end of a context count as the continuation's, as harness and tokenizers have it.
    for (before, text), (total, greedy) in zip(
        [("the cat", " sat"), ("", "on"), ("the", " mat"), (letter, best)], actual, strict=True
    ):
        expected = log_p(m, before, text)
        assert total == pytest.approx(expected[0], abs=1e-3)
        assert greedy == expected[1]
    assert [greedy for _, greedy in actual] == [False, False, False, True]


def test_lm_eval_scores_texts_longer_than_max_seq_len(adapter):
    m, text = language_model(), "on the mat " * 20
    adapted = adapter.MiniformerLM(m, stride=8)
    [total] = adapted.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    assert total == pytest.approx(m.score([text], stride=8)[0].total_logprob)
    [(after, _)] = adapted.loglikelihood(requests((text, "x")), disable_tqdm=True)
    ids = torch.tensor([BYTES.encode(text + "x")])[:, -65:]  # as many as the model reads, and one
    expected = m.model(ids[:, :-1])[0, -2:].detach().log_softmax(-1).gather(1, ids[0, -2:, None])
    assert after == pytest.approx(float(expected.sum()), abs=1e-3)
    [written] = adapted.generate_until(requests((text, {"max_gen_toks": 5})), disable_tqdm=True)
    assert written == m.generate(text, max_new_tokens=5, temperature=0.0, context_shift=True)


def test_lm_eval_answers_end_at_a_stop_string(adapter):
    m = language_model()
    full = m.generate("the", max_new_tokens=30, temperature=0.0)
    prompts = [
        ("the", {"until": [full[3], ""], "max_gen_toks": 30, "do_sample": False}),
        ("the", {"until": full[5:7], "max_gen_toks": 30}),
        ("the", {"until": [], "max_gen_toks": 4, "temperature": 0.0}),
        ("the", {"max_gen_toks": 30, "temperature": 0.7, "top_k": 3}),
    ]
    result = adapter.MiniformerLM(m, seed=5).generate_until(requests(*prompts), disable_tqdm=True)
    assert result[0] == full[: full.index(full[3])]
    assert result[1] == full[: full.index(full[5:7])]
    assert result[2] == m.generate("the", max_new_tokens=4, temperature=0.0)
    assert result[3] == m.generate("the", max_new_tokens=30, temperature=0.7, top_k=3, seed=5)
    assert result[3] != full


def test_lm_eval_user_errors(adapter, tmp_path):
    with pytest.raises(UserError, match="'num_fewshot' is not supported"):
        adapter.MiniformerLM(language_model()).generate_until(
            requests(("a", {"num_fewshot": 3})), disable_tqdm=True
        )
    with pytest.raises(UserError, match="nowhere: no such model directory"):
        adapter.MiniformerLM(str(tmp_path / "nowhere"))
    m = Pipeline(
        tiny_model(output_dim=2, causal=False), BYTES, generation=GenerationConfig(),
        task=Classification(classes=[0, 1], input_kind="text"),
    )  # fmt: skip
    with pytest.raises(UserError, match="a model for classification generates no text"):
        adapter.MiniformerLM(m)


def test_lm_eval_command_prints_one_message(adapter, monkeypatch, capsys):
    def refuse():
        raise UserError("nowhere: no such model directory")

    harness = types.ModuleType("lm_eval.__main__")
    harness.cli_evaluate = refuse
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", harness)
    assert adapter.main() == 2
    assert capsys.readouterr().err == "miniformer: error: nowhere: no such model directory\n"
