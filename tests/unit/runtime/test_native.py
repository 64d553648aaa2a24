"""The native kernels against PyTorch, per component, and the fallback without kernels."""

import concurrent.futures
import copy
import gc
import math
import os
import signal
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Seq2SeqTransformer
from miniformer.config import GenerationConfig, UserError
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.inputs import PromptBatch
from miniformer.generation.loop import prefill
from miniformer.runtime.native import build, ctypes_structs, decode_step, engine, huge_pages
from miniformer.runtime.native.decode_step import NativeRuntime
from miniformer.runtime.native.engine import Engine, NativeKernelsWarning, get_engine
from miniformer.runtime.native.thread_tuning import ThreadTuner
from miniformer.runtime.native.weight_layout import quantize_int4
from miniformer.runtime.native.weights import NativeWeights, quantize_int8, unsupported_reason
from tests.kit import run_python, tiny_model
from tests.kit.plugins import Int8Linear, LoRALinear

SHAPES = {
    "llama": {"norm": "rmsnorm", "activation": "swiglu", "bias": False},
    "gpt2": {"position": "learned", "activation": "gelu_tanh", "head_bias": True},
    "untied": {"tie_embeddings": False, "activation": "silu"},
    "alibi": {"position": "alibi", "activation": "geglu"},
    "relative": {"position": "t5_relative", "activation": "reglu", "logit_scale": 0.5},
    "sinusoidal": {"position": "sinusoidal", "activation": "geglu_tanh"},
    "none": {"position": "none", "activation": "relu"},
    "post": {"pre_norm": False, "embedding_norm": True, "embedding_scale": 3.0},
    "both": {"norm_placement": "both", "norm": "zero_centered_rmsnorm", "final_softcap": 5.0,
             "logit_softcap": 4.0},
    "output": {"norm_placement": "output", "qk_norm": "projection", "norm": "rmsnorm"},
    "heads": {"qk_norm": "head", "n_kv_heads": 2, "head_dim": 6},
    "windows": {"sliding_window": 3, "window_pattern": "LG", "rotary_base_local": 100.0},
    "parallel": {"parallel_residual": True, "rotary_pct": 0.5},
    "sinks": {"attention_sinks": True, "n_kv_heads": 1, "attention_scale": 0.3},
    "types": {"token_types": 2, "embedding_scale": 2.0, "final_softcap": 9.0},
    "odd": {"head_dim": 5, "d_ff": 37, "n_kv_heads": 2, "position": "learned", "vocab_size": 41},
    "many": {"vocab_size": 1100},  # more matrix rows than fit in the CPU cache
    "dynamic": {"rotary_scaling": {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 4}},
}  # fmt: skip
GREEDY = GenerationConfig(max_new_tokens=1, temperature=0.0)
LIKELIEST = Engine(tiny_model(), threads=2)
CATCHES = {"windows": pytest.mark.catches("kernels_see_the_whole_text")}
EVERY_SHAPE = [pytest.param(name, marks=CATCHES.get(name, ())) for name in SHAPES]
COMPILED = build.load_library()._name
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()


def runtime_on(cache, model, engine, memory=()):
    """A native runtime that continues from a filled cache."""
    runtime = NativeRuntime(engine, model, memory)
    runtime.cache = cache
    return runtime


def steps_of(model, memory=(), *, mask=None, threads=1, weights="float32", steps=5, rows=3):
    """Logits of several steps, by the kernels and by the model."""
    ids = torch.randint(0, 31, (rows, 5))
    caches = [model.new_cache(rows, 5 + steps, "full") for _ in range(2)]
    result = []
    with torch.inference_mode():
        for cache in caches:
            if mask is not None:
                cache.final_lengths = mask.sum(1, keepdim=True) + steps
            model.features(ids, *memory, mask, cache=cache)
        kernels = runtime_on(caches[0], model, Engine(model, weights, threads), memory)
        for _ in range(steps):
            token = torch.randint(0, 31, (rows,))
            features = model.features(token[:, None], *memory, cache=caches[1])[:, 0]
            result.append((kernels.step(token), model.logits(features)))
    return result


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mask", [None, MASK], ids=["even", "ragged"])
@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_native_step_matches_the_model(shape, mask, threads):
    model = tiny_model(**SHAPES[shape])
    for actual, reference in steps_of(model, mask=mask, threads=threads):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_native_prefill_is_left_to_models_with_position_bias(shape):
    model = tiny_model(**SHAPES[shape])
    runtime = NativeRuntime(Engine(model), model)
    assert runtime.supports_prefill == (shape not in ("alibi", "relative"))


@pytest.mark.catches("last_panel_repeats_a_row", "kernels_read_padding")
@pytest.mark.parametrize("at_once", [1, 4, 256])
@pytest.mark.parametrize("mask", [None, MASK], ids=["even", "ragged"])
@pytest.mark.parametrize("shape", [item for item in SHAPES if item not in ("alibi", "relative")])
def test_native_prefill_matches_the_model(shape, mask, at_once, monkeypatch):
    """Prefill in one chunk or several, followed by a decode step."""
    monkeypatch.setattr("miniformer.runtime.native.decode_step._PREFILL_CHUNK", at_once)
    model = tiny_model(**SHAPES[shape])
    kernels, ids, token = (
        Engine(model, threads=2),
        torch.randint(0, 31, (3, 5)),
        torch.tensor([3, 1, 2]),
    )
    with torch.inference_mode():
        runtime = NativeRuntime(kernels, model)
        actual = [runtime.prefill(ids, mask, 2), runtime.step(token)]
        cache = model.new_cache(3, 7, "full")
        if mask is not None:
            cache.final_lengths = mask.sum(1, keepdim=True) + 2
        reference = model.features(ids, mask, cache=cache)[:, -1]
        reference = [reference, model.features(token[:, None], cache=cache)[:, 0]]
        for a, b in zip(actual, reference, strict=True):
            torch.testing.assert_close(a, model.logits(b), rtol=1e-4, atol=3e-5)


def test_native_prefill_in_chunks():
    model = tiny_model(max_seq_len=700)
    for length in (300, 600):  # the longer one is left to the model
        prompt = torch.randint(0, 31, (1, length))
        expected = model(prompt)[0, -1].detach().log_softmax(-1)
        (result,) = generate(model, [GenerationInput(prompt[0].tolist())], GREEDY)
        assert result.tokens == [int(expected.argmax())]
        assert result.logprobs == pytest.approx([float(expected.max())], abs=1e-4)


@pytest.mark.parametrize("rows", [1, 4, 7, 30])
@pytest.mark.parametrize("weights", ["float32", "bf16", "int8", "int4"])
def test_native_batch_matches_single_rows(weights, rows):
    """Rows in a batch have the same results as rows alone, for any number of rows per tile."""
    model = tiny_model(d_model=64, d_ff=96, vocab_size=700, **SHAPES["llama"])  # two blocks
    ids, token = torch.randint(0, 31, (rows, 5)), torch.randint(0, 31, (rows,))
    kernels = Engine(model, weights)

    def step(selected):
        cache = model.new_cache(len(selected), 6, "full")
        with torch.inference_mode():
            model.features(ids[selected], cache=cache)
            return runtime_on(cache, model, kernels).step(token[selected])

    alone = torch.cat([step(torch.tensor([row])) for row in range(rows)])
    torch.testing.assert_close(step(torch.arange(rows)), alone, rtol=1e-4, atol=5e-5)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_native_top_tokens_match_a_full_softmax(vocabulary, k, seed):
    k = min(k, vocabulary)
    logits = 9 * torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed))
    logits[1, ::3] = -torch.inf
    logits[1, 0] = 0.0
    log_p, tokens = LIKELIEST.top_logprobs(logits, k)
    full = logits.log_softmax(-1)
    torch.testing.assert_close(log_p, full.topk(k).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(full.gather(1, tokens), log_p, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == k for row in tokens.tolist())


@pytest.mark.parametrize("what", [torch.nan, torch.inf])
def test_native_step_propagates_nan_and_infinity(what):
    """Non-finite values propagate through beam search and int8 quantization."""
    logits = torch.randn(2, 31)
    logits[1, 7] = what
    log_p, _ = LIKELIEST.top_logprobs(logits, 4)
    assert log_p[0].isfinite().all()
    assert log_p[1, 0].isnan()
    model = tiny_model(d_model=64, d_ff=96)
    with torch.no_grad():
        model.layers[0].attention.v_proj.bias[3] = what
    for options in ({"num_beams": 2}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="logits at new token 1 are not finite"):
            model.generate([[1, 2]], 4, weight_dtype="int8", **options)
    with torch.inference_mode():
        cache = model.new_cache(1, 9, "full")
        runtime = runtime_on(cache, model, Engine(model, "int8"))
        assert not runtime.step(torch.tensor([3])).isfinite().any()


@pytest.mark.catches("appended_tokens_have_no_positions")
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_append_has_the_bits_of_single_steps(shape, weights):
    """Also if the first layers read the tokens before, and the others at once."""
    model = tiny_model(**SHAPES[shape], n_layers=3)
    kernels, tokens = Engine(model, weights, 2), torch.randint(0, 31, (2, 4))
    with torch.inference_mode():
        runtimes = []
        for _ in range(3):
            cache = model.new_cache(2, 9, "full")
            model.features(torch.arange(10).view(2, 5), cache=cache)
            runtimes.append(runtime_on(cache, model, kernels))
        steps, at_once, in_parts = runtimes
        expected = torch.stack([steps.step(tokens[:, n]) for n in range(4)], 1)
        assert torch.equal(at_once.append(tokens), expected)
        for n in range(3):
            in_parts.step_layers(tokens[:, n], 2)
        assert torch.equal(in_parts.append(tokens, last_only=True), expected[:, -1:])
        for layer, reference in zip(in_parts.cache.layers, steps.cache.layers, strict=True):
            assert torch.equal(layer.keys, reference.keys)


@pytest.mark.catches("rows_settle_without_their_keys")
def test_native_reorder_does_not_copy_keys():
    """The result equals that of a reordered cache, and so does the materialized cache."""
    model = tiny_model(n_kv_heads=2)
    ids, random = torch.randint(0, 31, (2, 5)), torch.Generator().manual_seed(3)
    caches = [model.new_cache(2, 12, "full") for _ in range(2)]
    kernels = Engine(model)
    with torch.inference_mode():
        for cache in caches:
            model.features(ids, cache=cache)
            cache.select(torch.tensor([0, 0, 0, 1, 1, 1]))
        actual, reference = (runtime_on(cache, model, kernels) for cache in caches)
        for _ in range(5):
            token = torch.randint(0, 31, (6,), generator=random)
            logits = actual.step(token)
            torch.testing.assert_close(logits, reference.step(token), rtol=1e-5, atol=1e-6)
            rows = torch.randint(0, 3, (6,), generator=random) + torch.tensor([0, 0, 0, 3, 3, 3])
            actual.reorder(rows)
            caches[1].reorder(rows)
        actual.materialize_cache()
        for a, b in zip(caches[0].layers, caches[1].layers, strict=True):
            for name in ("keys", "values"):
                stored = [getattr(layer, name)[:, :, : caches[0].length] for layer in (a, b)]
                torch.testing.assert_close(*stored)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "seed": 1}])
def test_native_source_keys_are_shared_by_beams(options, monkeypatch):
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    sources = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    end = model.generate(sources, 9, temperature=0)[1][3]
    more = {**options, "eos_id": end}
    fast = model.generate(sources, 20, **more)
    monkeypatch.setattr(decode_step, "get_engine", lambda model, weight_dtype: None)
    assert model.generate(sources, 20, **more) == fast


@pytest.mark.catches("shared_sources_are_lost_in_prefill")
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "seed": 1}])
def test_context_shift_with_shared_sources(options, monkeypatch):
    """After the context is truncated, each row attends to its own source again."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False, max_seq_len=12)
    sources, options = [[3, 1, 4, 1, 5], [9, 2]], {**options, "context_shift": True}
    fast = model.generate(sources, 30, **options)
    monkeypatch.setattr(decode_step, "get_engine", lambda model, weight_dtype: None)
    assert model.generate(sources, 30, **options) == fast


@pytest.mark.catches("more_threads_pass_for_faster")
@given(st.integers(1, 64), st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_thread_tuner_selects_the_fastest_count(max_threads, fastest):
    """Every third step is slowed down; then the optimum changes."""
    tuning = ThreadTuner(max_threads)
    halves = [max_threads]
    while halves[-1] > 1:
        halves.append(halves[-1] // 2)

    def steps(count, best):
        for step in range(count):
            threads = tuning.num_threads(3)
            assert threads in halves
            yield threads
            took = 1 + abs(math.log(threads / best))
            tuning.record_time(3, took * (9 if step % 3 == 0 else 1))

    for best in (fastest, max_threads + 1 - min(fastest, max_threads)):
        off = {threads: abs(math.log(threads / best)) for threads in halves}
        result = list(steps(1250, best))[-40:]
        assert {off[threads] for threads in result} == {min(off.values())}


@pytest.mark.catches("weights_overlap_in_memory")
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_huge_page_arena_copies_tensors_aligned(sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huge_pages, "_CHUNK_BYTES", 256)  # a few tensors fill a chunk
        pages = huge_pages.HugePageArena()
        tensors = [torch.randn(size, 2) if full else torch.arange(size) for size, full in sizes]
        placed = [pages.copy_tensor(item) for item in tensors]
    for before, after in zip(tensors, placed, strict=True):
        assert after.data_ptr() % 64 == 0
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_thread_tuner_measures_during_generation():
    model = tiny_model()
    kernels = Engine(model, threads=2)
    with torch.inference_mode():
        runtime = runtime_on(model.new_cache(1, 30, "full"), model, kernels)
        logits = [runtime.step(torch.tensor([3])) for _ in range(20)]
        alone = runtime_on(model.new_cache(1, 30, "full"), model, Engine(model, threads=1))
        for item in logits:  # bit-identical for any number of threads
            torch.testing.assert_close(alone.step(torch.tensor([3])), item, rtol=0, atol=0)
    assert set(kernels._thread_pools) == {1, 2}
    assert kernels.thread_tuner._trials[1].selected in (1, 2)


@pytest.mark.catches("torch_threads_run_beside_the_kernels")
def test_exclusive_threads_apply_to_the_calling_thread_only():
    model, ids = tiny_model(), torch.randint(0, 31, (2, 5))
    torch.set_num_threads(2)
    try:
        state = prefill(model, PromptBatch(ids), GenerationConfig(3))
        with state.runtime.exclusive_threads():
            assert torch.get_num_threads() == 1
            with concurrent.futures.ThreadPoolExecutor(1) as executor:  # a new thread
                assert executor.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_native_rows_need_a_new_step_after_a_change():
    model = tiny_model()
    cache = model.new_cache(3, 9, "full")
    with torch.inference_mode():
        model.features(torch.randint(0, 31, (3, 5)), cache=cache)
        runtime = runtime_on(cache, model, Engine(model))
        runtime.step(torch.tensor([1, 2, 3]))
        cache.select(torch.tensor([0, 2]))
        with pytest.raises(ValueError, match="the cache has 2 rows, the runtime 3"):
            runtime.step(torch.tensor([1, 2]))


@pytest.mark.parametrize("shape", ["llama", "relative", "post", "heads", "output"])
def test_native_step_of_seq2seq_matches_the_model(shape):
    model = tiny_model(model=Seq2SeqTransformer, causal=False, **SHAPES[shape])
    source = torch.randint(0, 31, (3, 6))
    source_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [0] * 3 + [1] * 3]).bool()
    for mask in (None, source_mask):
        memory = [model.encode(source, mask)]
        for actual, reference in steps_of(model, memory, mask=MASK):
            torch.testing.assert_close(actual, reference, rtol=1e-4, atol=3e-5)


def as_kept(weight, weights):
    if weights == "bf16":
        return weight.bfloat16().float()
    if weights == "int4":
        bytes_, scales = quantize_int4(weight, 32)
        halves = torch.stack([bytes_ % 16, bytes_ // 16], 2).flatten(1).unflatten(1, (-1, 32))
        return ((halves.float() - 8) * scales[..., None]).flatten(1)
    return in_int8(weight)


def in_int8(x):
    """Rounds to int8 with a scale per 32 values."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale).round() * scale).flatten(-2)


def stand_in(model, weights):
    """A float32 model with the same rounding of weights and inputs as the kernels."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if not isinstance(module, torch.nn.Linear) and module is not copied.head:
            continue
        stored = "int8" if module is copied.head and weights == "int4" else weights
        with torch.no_grad():
            module.weight.copy_(as_kept(module.weight, stored))
        if weights != "bf16":
            module.register_forward_pre_hook(lambda _, inputs: (in_int8(inputs[0]), *inputs[1:]))
    return copied


@pytest.mark.catches("four_bits_are_cut_off")
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_quantized_weights_are_within_half_a_step(weights):
    torch.manual_seed(0)
    weight = torch.randn(48, 96) * torch.logspace(-3, 3, 48)[:, None]
    error = (as_kept(weight, weights) - weight).abs()
    max_abs = weight.unflatten(1, (-1, 32)).abs().amax(-1).repeat_interleave(32, 1)
    if weights == "bf16":  # 8 bits of significand
        assert (error <= 2.0**-8 * weight.abs()).all()
    elif weights == "int8":
        assert (error <= max_abs / 254 * (1 + 1e-5)).all()
    else:
        step = quantize_int4(weight, 32)[1].abs().repeat_interleave(32, 1)
        assert (step <= max_abs / 6.8 * (1 + 1e-5)).all()
        inside = error <= step / 2 * (1 + 1e-5)
        assert (error <= step * (1 + 1e-5)).all()  # 8 steps of the other sign are 7
        assert inside.unflatten(1, (-1, 32)).float().mean() > 0.9
        assert inside[weight.abs() < 6.5 * step].all()


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_native_step_with_quantized_weights_matches_a_rounded_model(weights):
    """bf16 rounds weights; int8 and int4 also round the inputs of products."""
    torch.manual_seed(0)
    shape = {"d_model": 64, "n_heads": 4, "d_ff": 96, "tie_embeddings": False, "norm": "rmsnorm"}
    model = tiny_model(**shape)
    rounded, ids = stand_in(model, weights), torch.randint(0, 31, (3, 10))
    result = {"kernels": [], "rounded": [], "plain": []}
    with torch.inference_mode():
        caches = {name: model.new_cache(3, 10, "full") for name in result}
        for cache in caches.values():
            model.features(ids[:, :5], cache=cache)
        kernels = runtime_on(caches["kernels"], model, Engine(model, weights))
        for token in ids[:, 5:].T:
            result["kernels"].append(kernels.step(token.contiguous()))
            for name, variant in (("rounded", rounded), ("plain", model)):
                features = variant.features(token[:, None], cache=caches[name])
                result[name].append(variant.logits(features[:, 0]))
    actual, expected, plain = (torch.stack(item) for item in result.values())
    error = (actual - expected).abs() / expected.std()
    # An input between two int8 values may be rounded to either.
    assert error.quantile(0.9) < 2e-5
    assert error.max() < (2e-5 if weights == "bf16" else 0.02)
    assert (actual - plain).abs().max() / expected.std() > 1e-3  # rounding has an effect


def test_int8_products_match_integer_products():
    """Compares quantization with its definition."""
    torch.manual_seed(0)
    library = build.load_library()
    x = torch.randn(96)
    q, scales = torch.empty(96, dtype=torch.int8), torch.empty(3)
    library.engine_quantize(x.data_ptr(), 96, q.data_ptr(), scales.data_ptr())
    expected = x.view(3, 32).abs().amax(1) / 127
    torch.testing.assert_close(scales, expected)
    torch.testing.assert_close(q.view(3, 32).float(), (x.view(3, 32) / expected[:, None]).round())
    assert q.abs().max() == 127


@pytest.mark.catches("matrices_of_any_width_are_rounded")
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_head_of_fewer_columns_than_a_group_is_float32(weights):
    """A write of its scales would be outside of their memory."""
    model = tiny_model(d_model=16, n_heads=4)
    head = NativeWeights(model, weights).model.head
    assert (head.kind, head.rows, head.columns) == (0, model.config.vocab_size, 16)
    assert NativeWeights(tiny_model(d_model=32), weights).model.head.kind == 2
    with pytest.raises(AssertionError, match="16 columns are no groups of 32"):
        quantize_int8(torch.zeros(8, 16))


@pytest.mark.catches("four_bits_have_no_minus_eight")
def test_int4_quantization_is_closer_than_plain_rounding():
    """Compares with a scale that maps the largest magnitude to 7; exact values stay exact."""
    torch.manual_seed(0)
    weight = torch.randn(40, 96)
    groups = weight.unflatten(1, (-1, 32))
    plain = groups.abs().amax(-1, keepdim=True) / 7
    plainly = (groups / plain).round() * plain
    stored = as_kept(weight, "int4").view_as(groups)
    errors = [(x - groups).square().sum(-1) for x in (stored, plainly)]
    assert (errors[0] <= errors[1] + 1e-6).all()
    assert errors[0].mean() < 0.8 * errors[1].mean()
    exact = torch.arange(-8.0, 8).repeat(2)[None] * 0.25
    torch.testing.assert_close(as_kept(exact, "int4"), exact)
    assert (as_kept(torch.zeros(1, 32), "int4") == 0).all()
    exact[0, 5] = torch.inf
    assert as_kept(exact, "int4").isnan().all()


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 0}, {"num_beams": 3}])
def test_native_texts_match_torch(options, monkeypatch):
    model = tiny_model(n_kv_heads=2)
    prompts = [[1, 2, 3], [4], [5, 6]]
    end = model.generate([[4]], 6, temperature=0)[0][4]
    more = {**options, "eos_id": end}
    fast = model.generate(prompts, 20, **more)
    monkeypatch.setattr(decode_step, "get_engine", lambda model, weight_dtype: None)
    assert model.generate(prompts, 20, **more) == fast


@pytest.mark.catches("engine_keeps_weights_that_have_changed")
def test_native_engine_follows_changed_weights():
    model = tiny_model()
    first = get_engine(model)
    assert get_engine(model) is first
    before = model.generate([[1, 2]], 8, temperature=0)
    with torch.no_grad():
        model.embedding.weight.mul_(-1)
    assert get_engine(model) is not first
    again = model.generate([[1, 2]], 8, temperature=0)
    assert again != before
    fresh = tiny_model()
    fresh.load_state_dict(model.state_dict())
    assert fresh.generate([[1, 2]], 8, temperature=0) == again


def test_native_engine_is_freed_with_its_model():
    model = tiny_model()
    gone = weakref.ref(get_engine(model))
    copy.deepcopy(model)  # the cached engine is not part of the model
    del model
    gc.collect()
    assert gone() is None


def test_native_texts_are_the_same_in_child_processes_and_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # a fork loses these threads
    model = tiny_model(max_seq_len=200)
    expected = model.generate([[1, 2]], 100, temperature=0)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        result = list(threads.map(lambda _: model.generate([[1, 2]], 100, temperature=0), range(8)))
    assert result == [expected] * 8
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if model.generate([[1, 2]], 100, temperature=0) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def changed(name):
    model = tiny_model(**({"output_dim": 2} if name == "outputs" else {}))
    if name == "hook":
        model.layers[0].register_forward_hook(lambda *args: None)
    elif name == "method":
        model.features = lambda *args, **options: None
    elif name == "part":
        model.layers[0].attention = type("Mine", (torch.nn.Module,), {})()
    elif name == "half":
        model = model.bfloat16()
    return model


@pytest.mark.catches("hooks_are_passed_over")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hook", "it has hooks"),
        ("method", "its methods have been replaced"),
        ("part", "Mine is not a built-in component"),
        ("half", "its weights are not float32"),
        ("outputs", "its inputs or outputs are not tokens"),
    ],
)
def test_native_engine_leaves_unsupported_models_to_torch(name, reason):
    model = changed(name)
    assert unsupported_reason(model) == reason
    assert get_engine(model) is None
    with pytest.raises(UserError, match=f"weight_dtype=int8 needs the decoding kernels: {reason}"):
        get_engine(model, "int8")
    assert unsupported_reason(tiny_model()) is None


def test_native_engine_leaves_autocast_to_torch():
    with torch.autocast("cpu", torch.bfloat16):
        assert unsupported_reason(tiny_model()) == "autocast is on"


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """An empty cache of compiled kernels."""
    monkeypatch.setenv("MINIFORMER_CACHE", str(tmp_path / "cache"))
    for cached in (build.load_library, engine.warn_once):
        cached.cache_clear()
    yield tmp_path
    for cached in (build.load_library, engine.warn_once):
        cached.cache_clear()


def test_native_build_without_a_compiler_warns_once(afresh, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(afresh))
    model = tiny_model()
    with pytest.warns(
        NativeKernelsWarning, match="several times slower: there is no C\\+\\+ compiler"
    ):
        text = model.generate([[1, 2]], 8, temperature=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.generate([[1, 2]], 8, temperature=0) == text
    with pytest.raises(UserError, match="needs the decoding kernels: there is no C"):
        model.generate([[1, 2]], 8, weight_dtype="bf16")


def test_native_build_names_a_compiler_that_fails(afresh, monkeypatch):
    fake = afresh / "bad"
    fake.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.warns(NativeKernelsWarning, match="bad cannot compile them: no such flag"):
        tiny_model().generate([[1]], 2)


def test_native_kernels_can_be_switched_off(afresh, monkeypatch):
    monkeypatch.setenv("MINIFORMER_KERNELS", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model().generate([[1]], 2)
    assert not (afresh / "cache").exists()


def test_native_build_is_cached(afresh):
    code = "from miniformer.runtime.native.build import load_library; print(load_library()._name)"
    first, again = (run_python("-c", code) for _ in range(2))
    assert first.stdout == again.stdout
    (stored,) = (afresh / "cache").iterdir()
    assert first.stdout.strip() == str(stored)


@pytest.mark.catches("kernels_of_another_processor_are_taken")
def test_native_build_cache_depends_on_processor_and_compiler(monkeypatch, tmp_path):
    compilers = [tmp_path / name for name in ("a", "b")]
    for compiler in compilers:
        compiler.write_text(f"#!/bin/sh\necho {compiler.name}\n")
        compiler.chmod(0o755)
    names = [build._cache_key(str(compiler)) for compiler in compilers]
    monkeypatch.setattr(build, "_cpu_description", lambda: "another")
    names.append(build._cache_key(str(compilers[0])))
    assert len(set(names)) == 3


@pytest.mark.catches("library_of_other_structures_is_taken")
def test_native_library_with_wrong_structure_sizes_is_refused():
    class Library:
        """Stub of kernels compiled from another source."""

        def __getattr__(self, name):
            return SimpleNamespace()

        def engine_sizes(self, sizes):
            sizes[:] = [8] * 6

    with pytest.raises(AssertionError, match="structs of"):
        ctypes_structs.declare_signatures(Library())


@pytest.mark.catches("kernels_are_always_native")
def test_native_build_uses_the_given_architecture(afresh, monkeypatch):
    fake = afresh / "noting"  # records its arguments; outputs the compiled library
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {afresh}/calls\nfor last; do :; done\ncp {COMPILED} "$last"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.delenv("MINIFORMER_KERNELS_ARCH", raising=False)
    native = build.load_library()
    build.load_library.cache_clear()
    monkeypatch.setenv("MINIFORMER_KERNELS_ARCH", "haswell")
    assert build.load_library()._name != native._name
    calls = (afresh / "calls").read_text().splitlines()
    result = [[word for word in call.split() if word.startswith("-march")] for call in calls]
    assert [flags for flags in result if flags] == [["-march=native"], ["-march=haswell"]]


def test_native_build_of_an_unknown_architecture_shows_the_compiler_message(afresh, monkeypatch):
    monkeypatch.setenv("MINIFORMER_KERNELS_ARCH", "pentagon")
    with pytest.raises(build.NativeKernelsUnavailable, match=r"cannot compile them: .*pentagon"):
        build.load_library()


def test_native_long_texts_and_many_rows():
    """Long generation with many rows."""
    model = tiny_model(max_seq_len=64)
    prompts = [[n % 31, (3 * n) % 31] for n in range(12)]
    free = model.generate(prompts, 40, temperature=0)
    assert free == [model.generate([prompt], 40, temperature=0)[0] for prompt in prompts]
    assert not any(math.isnan(float(x)) for x in model.generate(torch.tensor([[1]]), 3)[0])


def with_linear_like_modules(model):
    """LoRA and int8 layers in both layers, and their weights in plain layers of a copy."""
    plain = copy.deepcopy(model)
    for layer, its_copy in zip(model.layers, plain.layers, strict=True):
        for owner, name, kind in (
            ("attention", "q_proj", lambda base: LoRALinear(base, 2)),
            ("attention", "o_proj", Int8Linear),
            ("feed_forward", "up_proj", Int8Linear),
            ("feed_forward", "down_proj", lambda base: LoRALinear(base, 2)),
        ):
            replaced = kind(getattr(getattr(layer, owner), name))
            if isinstance(replaced, LoRALinear):
                torch.nn.init.normal_(replaced.lora_b)
            setattr(getattr(layer, owner), name, replaced)
            with torch.no_grad():
                weight = getattr(getattr(its_copy, owner), name).weight
                weight.copy_(replaced.effective_weight())
    return model, plain


@pytest.mark.catches("kernels_read_the_stored_weight")
def test_kernels_apply_effective_weights():
    model, plain = with_linear_like_modules(tiny_model())
    assert unsupported_reason(model) is None
    prompts = torch.randint(0, 31, (3, 4))
    ours, theirs = (m.generate(prompts, 12, temperature=0.0) for m in (model, plain))
    assert torch.equal(ours, theirs)
    engine_of_model, engine_of_copy = get_engine(model), get_engine(plain)
    assert get_engine(model) is engine_of_model is not engine_of_copy
    model.layers[0].attention.o_proj.scale.mul_(-1)
    assert get_engine(model) is not engine_of_model, "a changed buffer changes the effective weight"


def test_kernels_do_not_support_effective_weights_of_another_type():
    model = tiny_model()
    model.layers[0].attention.q_proj.effective_weight = lambda: torch.zeros(32, 32).bfloat16()
    assert get_engine(model) is None
    with pytest.raises(UserError, match="its weights are not float32"):
        get_engine(model, "int8")
