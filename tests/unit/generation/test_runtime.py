"""Runtimes against full forward passes without a cache, and the selection of a runtime."""

import pytest
import torch

from miniformer import registry
from miniformer.config import ConfigError, GenerationConfig
from miniformer.generation.runtime import PlainRuntime, make_runtime
from miniformer.runtime.native.decode_step import NativeRuntime
from miniformer.runtime.native.engine import Engine
from tests.kit import caches, tiny_model

OPTIONS = GenerationConfig()
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6]]


def make(name, model):
    return PlainRuntime(model) if name == "plain" else NativeRuntime(Engine(model), model)


def next_logits(model, rows):
    """Logits after each row, one forward pass for each."""
    return torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])


def assert_next_logits(logits, model, rows):
    torch.testing.assert_close(logits, next_logits(model, rows), rtol=1e-4, atol=3e-5)


@pytest.mark.catches("runtime_selects_the_first_rows")
@pytest.mark.parametrize("name", ["plain", "native"])
@torch.inference_mode()
def test_runtime_step_select_reorder(name):
    model, rows = tiny_model(), [[*row] for row in PROMPTS]
    runtime = make(name, model)
    ids = torch.tensor([[0] * (3 - len(row)) + row for row in rows])
    logits = runtime.prefill(ids, torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]]).bool(), 6)
    assert_next_logits(logits, model, rows)
    runtime.select(torch.arange(3).repeat_interleave(2), 2)
    rows = [[*row] for row in rows for _ in range(2)]
    random = torch.Generator().manual_seed(0)
    for order in ([1, 1, 2, 3, 5, 4], [0, 1, 3, 2, 4, 4], None):
        tokens = torch.randint(0, 31, (6,), generator=random)
        rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
        assert_next_logits(runtime.step(tokens), model, rows)
        if order is not None:
            runtime.reorder(torch.tensor(order))
            rows = [[*rows[index]] for index in order]
    runtime.select(torch.tensor([1, 4, 5]))
    rows = [rows[index] for index in (1, 4, 5)]
    assert not runtime.is_full
    for token in (7, 8, 9):
        rows = [[*row, token] for row in rows]
        assert_next_logits(runtime.step(torch.tensor([token] * 3)), model, rows)
    assert runtime.is_full


@pytest.mark.parametrize("name", ["plain", "native"])
@torch.inference_mode()
def test_runtime_append_trim(name):
    """Trimmed tokens have no effect, also in layers with a sliding window."""
    model, row = tiny_model(sliding_window=2), [3, 1, 4]
    runtime = make(name, model)
    runtime.prefill(torch.tensor([row]), None, 9, trimmable=True)
    logits = runtime.append(torch.tensor([[5, 6, 7, 8]]))[0]
    assert_next_logits(logits, model, [[*row, *[5, 6, 7, 8][:n]] for n in range(1, 5)])
    runtime.trim(4)
    assert_next_logits(runtime.append(torch.tensor([[2]]))[0], model, [[*row, 5, 2]])


@pytest.mark.parametrize("name", ["plain", "native"])
def test_runtime_top_logprobs(name):
    logits = 5 * torch.randn(4, 31)
    logprobs, tokens = make(name, tiny_model()).top_logprobs(logits, 3)
    reference, ids = logits.log_softmax(-1).sort(descending=True)
    torch.testing.assert_close(logprobs, reference[:, :3])
    assert tokens.tolist() == ids[:, :3].tolist()


@pytest.mark.catches("registered_runtimes_are_not_asked")
def test_registered_runtime_precedes_builtin_ones(monkeypatch):
    class Counting(PlainRuntime):
        steps = 0

        def step(self, tokens):
            Counting.steps += 1
            return super().step(tokens)

    def make_counting(model, memory, options):
        return Counting(model, memory) if options.max_new_tokens > 5 else None

    model = tiny_model()
    expected = model.generate([[1, 2]], 9, temperature=0)
    monkeypatch.setitem(registry._registered, "runtime", {"counting": make_counting})
    assert model.generate([[1, 2]], 9, temperature=0) == expected
    assert Counting.steps == 8
    model.generate([[1, 2]], 5)
    assert Counting.steps == 8


def test_runtime_of_a_model():
    assert type(make_runtime(tiny_model(), [], OPTIONS)) is NativeRuntime
    hooked = tiny_model()
    hooked.register_forward_hook(lambda *args: None)
    assert type(make_runtime(hooked, [], OPTIONS)) is PlainRuntime


@pytest.mark.catches("kernels_ignore_the_kind_of_cache")
@pytest.mark.parametrize("kind", [*registry.builtin_names("cache"), *caches.KINDS])
def test_cache_kind_of_generate(kind, monkeypatch):
    """Greedy, sampled, beams, a longer text than the context, and a draft."""
    monkeypatch.setitem(registry._registered, "cache", caches.KINDS)
    model, created = tiny_model(sliding_window=4, window_pattern="LG"), []
    monkeypatch.setattr(
        model, "new_cache", lambda *args: created.append(args[2]) or new_cache(*args)
    )
    new_cache = type(model).new_cache.__get__(model)
    options = [
        {"temperature": 0, "eos_id": 3}, {"seed": 1}, {"num_beams": 3},
        {"temperature": 0, "context_shift": True, "max_new_tokens": 40},
    ]  # fmt: skip
    for values in options:
        expected = model.generate(PROMPTS, **{"max_new_tokens": 12, **values})
        created.clear()
        result = model.generate(PROMPTS, **{"max_new_tokens": 12, **values, "cache_kind": kind})
        assert {*created} == {kind}
        if kind not in ("int8", "bfloat16"):
            assert result == expected


def test_cache_kind_is_checked():
    with pytest.raises(ConfigError, match=r"unknown cache_kind 'int4' \(did you mean 'int8'\?\)"):
        GenerationConfig(cache_kind="int4")
    for values, name in (({"weight_dtype": "int8"}, "weight_dtype=int8"),
                         ({"cuda_graph": True}, "cuda_graph=true")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name} has a cache of its own; leave cache_kind"):
            GenerationConfig(cache_kind="full", **values)
