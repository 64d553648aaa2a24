"""Attention to the best blocks of keys: a plain loop, and the rules of masks and caches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer, UserError, set_attention_backend
from miniformer.compression.sparse_attention.attention import best_blocks
from miniformer.config import GenerationConfig
from miniformer.generation.api import GenerationInput
from miniformer.generation.slots import SlotDecoder
from miniformer.model.masks import make_mask, make_visibility
from miniformer.model.transforms import apply_transforms, merge_transforms
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

MODELS = {
    "decoder": {"n_kv_heads": 2},
    "alibi": {"position": "alibi"},
    "encoder": {"causal": False},
    "window": {"sliding_window": 5, "window_pattern": "LG"},
    "seq2seq": {"model": Seq2SeqTransformer, "causal": False},
}


def sparse(block_size=3, num_blocks=2, **changes):
    setting = {"type": "sparse_attention", "block_size": block_size, "num_blocks": num_blocks}
    return apply_transforms(tiny_model(**changes), [setting])


def plain_blocks(q, k, segments, causal, size, count):
    """Chosen keys of each query in loops, bool [B, H, T, S]; every row has T tokens."""
    batch, heads, length, _ = q.shape
    chosen = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for row in range(batch):
        for head in range(heads):
            kv_head = head * k.shape[1] // heads
            for t in range(length):
                if segments[row][t] == 0:
                    continue
                same = [s for s in range(length) if segments[row][s] == segments[row][t]]
                keys = [s for s in same if s <= t or not causal]
                groups = {}
                for s in keys:
                    groups.setdefault(same.index(s) // size, []).append(s)
                means = {
                    block: (q[row, head, t] @ k[row, kv_head, group].mean(0)).item()
                    for block, group in groups.items()
                }
                means[same.index(t) // size] = math.inf
                best = sorted(means, key=lambda block: -means[block])[:count]
                for block in best:
                    chosen[row, head, t, groups[block]] = True
    return chosen


@pytest.mark.catches(
    "blocks_include_padding", "last_block_is_dropped", "the_worst_blocks_are_chosen"
)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 4), st.integers(1, 4))
def test_blocks_are_those_of_plain_loops(seed, causal, size, count):
    dice = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, heads, 7, 4, generator=dice) for heads in (4, 2))
    segments = torch.randint(0, 3, (2, 7), generator=dice)
    visibility = make_visibility(2, 7, causal=causal, segment_ids=segments, device=q.device)
    mask = make_mask(visibility, explicit=True)
    result = best_blocks(q, k, mask, size, count)
    expected = plain_blocks(q, k, segments.tolist(), causal, size, count)
    real = (segments != 0)[:, None, :, None]
    assert torch.equal(result & real, expected)


@pytest.mark.catches("blocks_are_chosen_in_bf16")
def test_autocast_changes_no_block():
    dice = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 64, 16, generator=dice) for heads in (4, 2))
    mask = make_mask(make_visibility(2, 64, causal=True, device=q.device), explicit=True)
    expected = best_blocks(q, k, mask, 4, 3)
    model = sparse(n_layers=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(best_blocks(q, k, mask, 4, 3), expected)
        model(torch.randint(model.config.vocab_size, (2, 12))).sum().backward()
    assert model.layers[0].attention.q_proj.weight.grad.isfinite().all()


@pytest.mark.catches("queries_of_sparse_attention_are_scaled")
@pytest.mark.parametrize("name", MODELS)
def test_all_blocks_are_dense_attention(name):
    dense, model = tiny_model(**MODELS[name]), sparse(3, 4, **MODELS[name])
    for built in (dense, model):  # that of cross-attention, too
        set_attention_backend(built, "plain")
    ids = torch.arange(22).view(2, 11)
    inputs = (ids, ids) if name == "seq2seq" else (ids,)
    assert torch.equal(model(*inputs), dense(*inputs))
    few = sparse(2, 1, **MODELS[name])
    assert not torch.allclose(few(*inputs), dense(*inputs), atol=1e-3)


@pytest.mark.catches("blocks_include_padding")
@pytest.mark.parametrize("name", MODELS)
def test_padding_and_packing_change_nothing(name):
    model = sparse(**MODELS[name])
    miniformer.assert_no_leaks(model)
    texts = [torch.arange(1, 12), torch.arange(5, 13)]
    if name == "seq2seq":
        alone = [model(x[None], x[None])[0] for x in texts]
        ids = torch.zeros(2, 11, dtype=torch.long)
        ids[0], ids[1, :8] = texts[0], texts[1]
        mask = torch.arange(11)[None] < torch.tensor([[11], [8]])
        rows = model(ids, ids, source_mask=mask)
        torch.testing.assert_close(rows[1, :8], alone[1], rtol=1e-4, atol=1e-5)
        return
    alone = [model(x[None])[0] for x in texts]
    for start in (0, 4):  # padding on the right, on the left
        ids, mask = torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 12, dtype=torch.bool)
        ids[0, start : start + 8], mask[0, start : start + 8] = texts[1], True
        out = model(ids, attention_mask=mask)[0, start : start + 8]
        torch.testing.assert_close(out, alone[1], rtol=1e-4, atol=1e-5)
    packed = torch.cat(texts)[None]
    segments = torch.tensor([[1] * 11 + [2] * 8])
    out = model(packed, segment_ids=segments)[0]
    torch.testing.assert_close(out, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.catches("cached_queries_are_in_the_first_block")
@pytest.mark.parametrize("name", ["decoder", "alibi", "window"])
def test_cached_is_uncached_and_batch_is_singles(name):
    model = sparse(**MODELS[name])
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7], [1, 8, 2, 8]]
    together = model.generate(prompts, 12, temperature=0)
    for prompt, text in zip(prompts, together, strict=True):
        assert model.generate([prompt], 12, temperature=0)[0] == text
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert text[-len(ids) :] == ids


@pytest.mark.catches("cached_queries_are_in_the_first_block")
@pytest.mark.parametrize("cache_kind", ["window", "full"])
def test_sequences_that_join_a_running_cache_equal_sequences_alone(cache_kind):
    model = sparse(2, 2, n_kv_heads=2)
    options = GenerationConfig(temperature=0, max_new_tokens=9, cache_kind=cache_kind)
    decoder = SlotDecoder(model, options, num_slots=3, capacity=24)
    prompts = [[(5 * n + t) % 31 for t in range(1 + 3 * n % 10)] for n in range(8)]
    slots, texts = {}, {}
    for step in range(60):
        if len(prompts) > len(texts) + len(slots) and decoder.num_free and step % 2 == 0:
            number = len(texts) + len(slots)
            slots[decoder.add(GenerationInput(prompts[number]), options)] = number
        done = [token.slot for token in decoder.step() if token.finished] if slots else []
        for slot in done:
            number = slots.pop(slot)
            texts[number] = prompts[number] + decoder.remove(slot).tokens
    alone = {n: model.generate([prompt], 9, temperature=0)[0] for n, prompt in enumerate(prompts)}
    assert texts == alone


@pytest.mark.catches("sparse_models_are_exported_as_dense", "transforms_can_always_be_merged")
def test_a_directory_stays_sparse(tmp_path):
    model = sparse(vocab_size=258)
    pipeline = Pipeline(model, Tokenizer.train("byte", []), LanguageModeling())
    pipeline.save(tmp_path / "model")
    loaded = miniformer.load(tmp_path / "model").model
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), model(ids))
    assert not torch.allclose(loaded(ids), tiny_model(vocab_size=258)(ids), atol=1e-3)
    with pytest.raises(UserError, match="cannot be expressed without its transforms"):
        merge_transforms(model)
    message = r"has transforms \(sparse_attention\) that cannot be merged into its weights; take a"
    with pytest.raises(UserError, match=message):
        miniformer.quantize(model, tmp_path / "int8", to="int8")
    with pytest.raises(UserError, match=message):
        miniformer.prune(model, tmp_path / "small", remove="ffn=0.5")


def test_training_changes_all_weights_with_a_gradient():
    model = sparse(2, 2)
    model(torch.arange(20)[None]).square().sum().backward()
    gradients = [x.grad.abs().sum() for x in model.layers[1].attention.parameters()]
    assert all(gradient > 0 for gradient in gradients[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "sparse_attention: block_size must be at least 1, not 0"),
        ({"num_blocks": 2.5}, "sparse_attention: num_blocks must be at least 1, not 2.5"),
        ({"size": 3}, "sparse_attention has no option 'size'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        apply_transforms(tiny_model(), [{"type": "sparse_attention", **options}])
    model = sparse()
    set_attention_backend(model, "sdpa")
    with pytest.raises(UserError, match="the attention backend plain, not by sdpa"):
        model(torch.arange(20)[None])
    with pytest.raises(UserError, match="has no built-in self-attention"):
        apply_transforms(sparse(), [{"type": "sparse_attention"}])
