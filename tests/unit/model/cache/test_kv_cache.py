"""The key-value cache: after any operations, logits are those of a full pass."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniformer.config import UserError
from miniformer.model.cache.kv_cache import Int8Cache
from miniformer.model.cache.protocol import CacheSpec
from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.kit import tiny_model

SHAPES = {
    "rotary": {},
    "window": {"sliding_window": 3},
    "pattern": {"sliding_window": 4, "window_pattern": "LG"},
    "alibi": {"position": "alibi"},
    "relative": {"position": "t5_relative", "relative_buckets": 8, "relative_max_distance": 9},
    "learned": {"position": "learned"},
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def last_logits(model, rows):
    """Logits after each row, computed row by row without a cache."""
    return torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def tokens(model, rows, length):
    return torch.randint(0, model.config.vocab_size, (rows, length))


@torch.inference_mode()
def test_dynamic_scaling_uses_the_capacity_by_default():
    """Cached keys are not rotated again, so all steps must use one length."""
    dynamic = {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 6}
    model, ids = tiny_model(rotary_scaling=dynamic), torch.randint(0, 31, (2, 20))
    cache = model.new_cache(2, 20)
    steps = [model(part, cache=cache) for part in ids.split([5, *[1] * 15], 1)]
    close(torch.cat(steps, 1), model(ids))


@pytest.mark.catches("spans_stay_where_they_were")
@torch.inference_mode()
def test_dynamic_scaling_uses_final_lengths_of_reordered_rows():
    dynamic = {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 3}
    model, ids = tiny_model(rotary_scaling=dynamic), torch.randint(0, 31, (2, 9))
    cache = model.new_cache(2, 12)
    cache.final_lengths = torch.tensor([[9], [6]])
    model(ids[:, :5], cache=cache)
    cache.reorder(torch.tensor([1, 0]))
    reloaded = model.new_cache(2, 10)  # whose own capacity would be another length
    reloaded.load_state_dict(cache.state_dict())
    next_ = ids[[1, 0], 5:6]
    for one_cache in (cache, reloaded):
        logits = model(next_, cache=one_cache)[:, -1]
        close(logits[0], model(ids[1:, :6])[0, -1])
        close(logits[1], model(ids[:1])[0, 5])


@pytest.mark.parametrize("new", [4, 12])
def test_dynamic_scaling_does_not_depend_on_other_prompts(new):
    dynamic = {"type": "dynamic", "factor": 4.0, "original_max_seq_len": 4}
    model = tiny_model(rotary_scaling=dynamic)
    prompts = torch.randint(0, 31, (3, 9)).tolist()
    prompts = [prompts[0], prompts[1][:2], prompts[2][:5]]
    alone = [model.generate([prompt], new, temperature=0)[0] for prompt in prompts]
    assert model.generate(prompts, new, temperature=0) == alone


@pytest.mark.catches("positions_restart_in_the_cache", "ring_forgets_within_the_window")
@every_shape
@torch.inference_mode()
def test_cached_steps_equal_full_passes(shape):
    """Far beyond the windows."""
    model, ids = tiny_model(**SHAPES[shape]), torch.randint(0, 31, (2, 20))
    cache = model.new_cache(2, 20)
    model(ids[:, :5], cache=cache)
    for t in range(5, 20):
        logits = model(ids[:, t : t + 1], cache=cache)[:, -1]
        close(logits, model(ids[:, : t + 1])[:, -1])


@every_shape
@pytest.mark.parametrize("kind", ["window", "full"])
@torch.inference_mode()
def test_cache_with_padding_and_flex_attention(shape, kind):
    """Not in the battery, since flex_attention is slow without compilation."""
    model, ids = tiny_model(**SHAPES[shape]), torch.randint(0, 31, (2, 9))
    mask = torch.tensor([[False, False, *[True] * 7], [True, True, True, False, *[True] * 5]])
    for real in (None, mask):
        set_attention_backend(model, "auto")
        expected = model(ids, real)
        set_attention_backend(model, "flex")
        cache, masks = model.new_cache(2, 9, kind), mask.split([5, 1, 3], 1)
        steps = [
            model(part, None if real is None else part_mask, cache=cache)
            for part, part_mask in zip(ids.split([5, 1, 3], 1), masks, strict=True)
        ]
        close(torch.cat(steps, 1)[mask], expected[mask])


@pytest.mark.catches("keys_stay_where_they_were")
@every_shape
@torch.inference_mode()
def test_cache_reorder(shape):
    model = tiny_model(**SHAPES[shape])
    ids = tokens(model, 3, 5)
    cache = model.new_cache(3, 8)
    model(ids, cache=cache)
    rows = torch.tensor([2, 0, 2])
    cache.reorder(rows)
    new = tokens(model, 3, 1)
    close(model(new, cache=cache)[:, -1], model(torch.cat((ids[rows], new), 1))[:, -1])


@pytest.mark.catches("remaining_rows_take_keys_of_the_first")
@every_shape
@pytest.mark.parametrize("rows", [[2], [1, 0], [0, 0, 1, 2, 2]])
@torch.inference_mode()
def test_cache_select(shape, rows):
    model = tiny_model(**SHAPES[shape])
    ids, rows = tokens(model, 3, 5), torch.tensor(rows)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    cache = model.new_cache(3, 9)
    model(ids, mask, cache=cache)
    cache.select(rows)
    assert cache.batch_size == len(rows)
    new = tokens(model, len(rows), 2)
    step = [model(new[:, n : n + 1], cache=cache)[:, -1] for n in range(2)]
    full, real = torch.cat((ids[rows], new), 1), torch.ones(len(rows), 2).bool()
    expected = model(full, torch.cat((mask[rows], real), 1))
    close(step[0], expected[:, -2])
    close(step[1], expected[:, -1])


@pytest.mark.catches("trimmed_tokens_stay_visible")
@every_shape
@torch.inference_mode()
def test_cache_trim_to_different_lengths(shape):
    """As in speculative decoding: each row accepts another number of draft tokens."""
    model = tiny_model(**SHAPES[shape])
    prompt, draft, new = tokens(model, 3, 4), tokens(model, 3, 3), tokens(model, 3, 1)
    cache = model.new_cache(3, 12, "full")
    model(prompt, cache=cache)
    model(draft, cache=cache)
    lengths = torch.tensor([4, 7, 5])
    cache.trim(lengths)
    assert cache.lengths.tolist() == lengths.tolist()
    rows = [
        [*prompt[b].tolist(), *draft[b, : n - 4].tolist()] for b, n in enumerate(lengths.tolist())
    ]
    for _ in range(2):
        logits = model(new, cache=cache)[:, -1]
        rows = [[*row, int(new[b])] for b, row in enumerate(rows)]
        close(logits, last_logits(model, rows))
        new = logits.argmax(-1, keepdim=True)


@torch.inference_mode()
def test_cache_trim_to_one_length():
    model = tiny_model()
    ids = tokens(model, 2, 9)
    cache = model.new_cache(2, 9)
    model(ids, cache=cache)
    cache.trim(4)
    assert cache.length == 4
    assert cache.positions is None
    close(model(ids[:, 4:6], cache=cache), model(ids[:, :6])[:, 4:])
    cache.trim(100)
    assert cache.length == 6


@torch.inference_mode()
def test_cache_trim_rejects_overwritten_ring():
    model = tiny_model(sliding_window=3)
    cache = model.new_cache(1, 9)
    model(tokens(model, 1, 3), cache=cache)
    cache.trim(2)
    model(tokens(model, 1, 4), cache=cache)
    with pytest.raises(
        ValueError, match=r"window of 3 has overwritten .* make it with kind='full'"
    ):
        cache.trim(2)


@every_shape
@pytest.mark.parametrize("kind", ["window", "full", "int8"])
@torch.inference_mode()
def test_cache_state_dict_round_trip(shape, kind, tmp_path):
    model = tiny_model(**SHAPES[shape])
    ids = tokens(model, 2, 8)
    mask = torch.tensor([[True] * 6, [True, True, False, False, True, True]])
    cache = model.new_cache(2, 8, kind)
    model(ids[:, :6], mask, cache=cache)
    save_file(cache.state_dict(), tmp_path / "cache.safetensors")
    fresh = model.new_cache(2, 10, kind)
    fresh.load_state_dict(load_file(tmp_path / "cache.safetensors"))
    assert fresh.lengths.tolist() == [6, 4]
    first, second = (model(ids[:, 6:], cache=one_cache) for one_cache in (cache, fresh))
    torch.testing.assert_close(first, second)


@torch.inference_mode()
def test_cache_load_state_dict_rejects_other_kind_or_size():
    model = tiny_model()
    cache = model.new_cache(2, 4)
    model(tokens(model, 2, 4), cache=cache)
    state = cache.state_dict()
    with pytest.raises(ValueError, match="4 tokens do not fit a cache of capacity 3"):
        model.new_cache(2, 3).load_state_dict(state)
    with pytest.raises(ValueError, match=r"keys of layer 0 in the state: \[2, .*another kind"):
        model.new_cache(1, 4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"keys of layer 0 in the state: missing"):
        model.new_cache(2, 4, "int8").load_state_dict(state)


def test_cache_rejects_unknown_kind():
    with pytest.raises(
        ValueError,
        match=r"unknown cache 'int4' \(did you mean 'int8'\?\); known: window, full, int8",
    ):
        tiny_model().new_cache(1, 4, "int4")


@pytest.mark.catches("int8_cache_keeps_four_bits")
@torch.inference_mode()
def test_int8_cache_rounding_error():
    cache = Int8Cache(CacheSpec([None], 2, 5, [3], 4, torch.device("cpu"), torch.float32))
    cache.extend(None, 5)
    keys, values = torch.randn(2, 2, 3, 5, 4) * 10
    for stored, expected in zip(cache.append(0, keys, values), (keys, values), strict=True):
        step = expected.abs().amax(-1, keepdim=True) / 127
        assert ((stored - expected).abs() <= step * 0.5001).all()
    assert cache.nbytes == 2 * 2 * 3 * 5 * (4 + 4)


@pytest.mark.catches("beams_keep_their_source", "source_is_projected_in_every_pass")
@torch.inference_mode()
def test_cross_attention_keys_are_projected_once_and_reordered():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    calls = []
    for layer in model.decoder.layers:
        layer.cross_attention.k_proj.register_forward_hook(lambda *args: calls.append(1))
    source, target = tokens(model, 2, 6), tokens(model, 2, 5)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    expected = model(source, target, mask)
    calls.clear()
    memory, cache = model.encode(source, mask), model.new_cache(2, 8)
    steps = [
        model.logits(model.features(target[:, t : t + 1], memory, cache=cache)) for t in range(5)
    ]
    close(torch.cat(steps, 1), expected)
    assert len(calls) == len(model.decoder.layers)
    rows = torch.tensor([1, 1])
    cache.reorder(rows)
    turned = type(memory)(memory.features[rows], mask[rows])
    new = tokens(model, 2, 1)
    again = model(source[rows], torch.cat((target[rows], new), 1), mask[rows])
    close(model.logits(model.features(new, turned, cache=cache))[:, -1], again[:, -1])


@pytest.mark.catches("source_is_projected_outside_of_layers")
def test_cross_attention_keys_are_projected_within_layers():
    """Sharded weights are available only while a layer is called."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    called, seen = [], []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda layer, args: called.append(layer))
        layer.register_forward_hook(lambda layer, args, out: called.remove(layer))
        for part in (layer.cross_attention.k_proj, layer.cross_attention.v_proj):
            part.register_forward_pre_hook(
                lambda part, args, layer=layer: seen.append(layer in called)
            )
    model(tokens(model, 2, 6), tokens(model, 2, 5))
    assert seen == [True] * 2 * len(model.decoder.layers)


@pytest.mark.catches("failed_pass_stays_in_the_cache")
def test_cache_after_a_failed_pass():
    model = tiny_model()
    ids = torch.randint(0, 31, (1, 6))
    expected = model(ids)
    cache = model.new_cache(1, 6)
    model(ids[:, :3], cache=cache)
    set_attention_backend(model, "varlen")  # which no cached pass can have
    with pytest.raises(UserError, match="varlen"):
        model(ids[:, 3:5], cache=cache)
    assert cache.length == 3
    assert cache.lengths.tolist() == [3]
    set_attention_backend(model, "auto")
    torch.testing.assert_close(model(ids[:, 3:], cache=cache), expected[:, 3:])


@pytest.mark.catches("state_of_columns_passes_for_a_ring")
def test_cache_load_state_dict_rejects_columns_for_a_ring():
    model = tiny_model(sliding_window=4)
    small, large = model.new_cache(1, 3), model.new_cache(1, 8)
    model(torch.tensor([[1, 2, 3]]), cache=small)
    with pytest.raises(ValueError, match="the state is of another kind of cache or model"):
        large.load_state_dict(small.state_dict())


def test_cache_state_dict_round_trip_of_a_decoder(tmp_path):
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    memory = model.encode(torch.tensor([[4, 5, 6]]))
    target = torch.tensor([[1, 2, 3, 4]])
    expected = model.features(target, memory)
    cache = model.new_cache(1, 4)
    model.features(target[:, :3], memory, cache=cache)
    save_file(cache.state_dict(), tmp_path / "cache")
    reloaded = model.new_cache(1, 4)
    reloaded.load_state_dict(load_file(tmp_path / "cache"))
    torch.testing.assert_close(
        model.features(target[:, 3:], memory, cache=reloaded), expected[:, 3:]
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_cache_rejects_other_batch_size(rows):
    model = tiny_model()
    cache = model.new_cache(2, 8)
    with pytest.raises(ValueError, match=f"{rows} rows do not fit a cache of 2 rows"):
        model(torch.zeros(rows, 3).long(), cache=cache)
    with pytest.raises(ValueError, match=r"rows must be int \[2\], one for each row"):
        cache.reorder(torch.zeros(rows).long())


def test_cache_trim_rejects_negative_lengths():
    cache = tiny_model().new_cache(2, 8)
    for lengths in (-1, torch.tensor([1, -1])):
        with pytest.raises(ValueError, match="lengths must be at least 0, not -1"):
            cache.trim(lengths)


def test_seq2seq_rejects_target_without_source():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    with pytest.raises(ValueError, match="1 sources, 2 targets"):
        model(torch.zeros(1, 3).long(), torch.zeros(2, 3).long())


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int16])
def test_check_inputs_rejects_ids_of_wrong_type(kind):
    with pytest.raises(ValueError, match=r"must be \[B, T\] token ids, not torch"):
        tiny_model()(torch.zeros(1, 3).to(kind))


@pytest.mark.parametrize("shape", ["rotary", "window"])
@torch.inference_mode()
def test_cache_with_no_tokens_or_no_rows(shape):
    model, ids = tiny_model(**SHAPES[shape]), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    cache = model.new_cache(2, 5)
    mask = torch.tensor([[True] * 3, [False, True, True]])
    none = ids[:, :0]
    assert model(none, cache=cache).shape == (2, 0, 31)
    model(ids[:, :3], mask, cache=cache)
    for empty in (None, none.bool()):
        assert model(none, empty, cache=cache).shape == (2, 0, 31)
    assert cache.lengths.tolist() == [3, 2]
    close(model(ids[:, 3:], cache=cache)[0, -1], model(ids[:1])[0, -1])
    cache = model.new_cache(0, 5)
    assert model(ids[:0], cache=cache).shape == (0, 4, 31)
    cache.trim(1)
    assert cache.lengths.shape == (0,)


@pytest.mark.catches("max_seq_len_counts_columns")
@pytest.mark.parametrize("shape", ["rotary", "learned"])
@torch.inference_mode()
def test_cache_max_seq_len_counts_tokens_not_columns(shape):
    """Rows trimmed to different lengths leave holes, which do not count."""
    model = tiny_model(**SHAPES[shape], max_seq_len=8)
    ids, cache = tokens(model, 2, 8), model.new_cache(2, 12, "full")
    model(ids[:, :6], cache=cache)
    cache.trim(torch.tensor([2, 6]))
    model(ids[:, 6:], cache=cache)
    cache.trim(torch.tensor([4, 3]))
    assert cache.length == 8
    new = tokens(model, 2, 2)
    rows = [[*ids[0, [0, 1, 6, 7]].tolist(), *new[0].tolist()],
            [*ids[1, :3].tolist(), *new[1].tolist()]]  # fmt: skip
    close(model(new, cache=cache)[:, -1], last_logits(model, rows))
    with pytest.raises(ValueError, match="a sequence of 9 tokens is longer than max_seq_len=8"):
        model(ids[:, :3], cache=cache)
    model(ids[:, :2], cache=cache)
    with pytest.raises(ValueError, match="13 columns of tokens and padding do not fit a cache"):
        cache.extend(None, 1)


@pytest.mark.catches("emptied_cache_keeps_its_source")
@pytest.mark.parametrize("none", [0, torch.tensor([0, 0])], ids=["number", "rows"])
@torch.inference_mode()
def test_cache_trimmed_to_zero_takes_another_source(none):
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    target, cache = tokens(model, 2, 4), model.new_cache(2, 8)
    for _ in range(2):
        source = tokens(model, 2, 5)
        out = model.features(target, model.encode(source), cache=cache)
        close(model.logits(out), model(source, target))
        cache.trim(none)
    assert cache.cross_kv is None
    source = tokens(model, 2, 5)
    memory = model.encode(source)
    model.features(target[:, :2], memory, cache=cache)
    cache.trim(torch.tensor([0, 1]))
    assert cache.cross_kv is not None, "one row has still a token that read its source"


@pytest.mark.parametrize("backend", ["auto", "plain", "matmul"])
@torch.inference_mode()
def test_cross_attention_keys_have_the_cache_dtype_under_autocast(backend):
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    set_attention_backend(model, backend)
    source, target = tokens(model, 2, 6), tokens(model, 2, 5)
    cache = model.new_cache(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected, memory = model(source, target), model.encode(source)
        steps = [model.logits(model.features(part, memory, cache=cache))
                 for part in target.split([2, 1, 2], 1)]  # fmt: skip
    error = (torch.cat(steps, 1) - expected).float().norm() / expected.float().norm()
    assert error < 0.02
    assert cache.nbytes == model.config.cache_bytes(2, 5, source_len=6)
    cache = model.bfloat16().new_cache(2, 5)
    model.features(target, model.encode(source), cache=cache)
    assert cache.nbytes == model.config.cache_bytes(2, 5, 2, source_len=6)


@torch.inference_mode()
def test_cache_takes_another_source_after_a_failed_first_pass():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    target, cache = tokens(model, 2, 4), model.new_cache(2, 8)
    failing = model.decoder.layers[1].register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.features(target, model.encode(tokens(model, 2, 5)), cache=cache)
    failing.remove()
    source = tokens(model, 2, 6)
    out = model.features(target, model.encode(source), cache=cache)
    close(model.logits(out), model(source, target))
