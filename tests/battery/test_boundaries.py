"""Windows, caches and limits at their boundaries: one token fewer, as many, one more."""

import pytest
import torch

from miniformer import registry
from miniformer.config import GenerationConfig, UserError
from miniformer.generation.logits_processors import bad_words, min_new_tokens, no_repeat_ngram
from miniformer.generation.sampling import sampling_distribution
from miniformer.model.cache.protocol import CacheSpec
from miniformer.model.cache.storage import Columns, Ring
from tests.battery.models import close, expected
from tests.kit import tiny_model
from tests.reference import transformer as reference

WINDOW = 4
AROUND = [1, WINDOW - 1, WINDOW, WINDOW + 1]


def small_cache(capacity=8, window=WINDOW, kind="window"):
    spec = CacheSpec([window], 1, capacity, [1], 1, torch.device("cpu"), torch.float32)
    return registry.build("cache", kind, spec, label="kind")


def append(cache, first, count):
    """Appends tokens whose keys are their numbers; returns the keys that these tokens see."""
    cache.extend(None, count)
    keys = torch.arange(first, first + count).float().view(1, 1, count, 1)
    seen, _ = cache.append(0, keys, -keys)
    positions = cache.layers[0].key_positions(cache)
    cache.end_pass()
    assert positions.flatten().tolist() == seen.flatten().tolist() or (positions < 0).any()
    return seen.flatten().tolist()


@pytest.mark.catches("ring_is_one_token_short")
@pytest.mark.parametrize(
    ("tokens", "retained"),
    [
        (WINDOW - 1, [0, 1, 2]),
        (WINDOW, [0, 1, 2, 3]),
        (WINDOW + 1, [4, 1, 2, 3]),  # one is overwritten
        (2 * WINDOW, [4, 5, 6, 7]),
        (2 * WINDOW + 1, [8, 5, 6, 7]),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_ring_holds_the_last_tokens_of_its_window(tokens, retained, at_once):
    """Token p lies in slot p mod the window, however many come in one pass."""
    cache = small_cache(capacity=9)
    for first in range(0, tokens, at_once):
        append(cache, first, min(at_once, tokens - first))
    assert cache.layers[0].used(cache.length)["keys"].flatten().tolist() == retained
    assert cache.layers[0].used(cache.length)["values"].flatten().tolist() == [-k for k in retained]


@pytest.mark.parametrize(
    ("capacity", "kind"),
    [(WINDOW - 1, Columns), (WINDOW, Columns), (WINDOW + 1, Ring)],
)
def test_layer_has_a_ring_only_if_its_window_is_shorter_than_the_cache(capacity, kind):
    (layer,) = small_cache(capacity).layers
    assert type(layer) is kind
    assert layer.nbytes == 2 * 4 * min(capacity, WINDOW)


@pytest.mark.parametrize("kind", ["window", "full", "int8"])
def test_cache_takes_no_more_tokens_than_its_capacity(kind):
    cache = small_cache(5, kind=kind)
    append(cache, 0, 4)
    append(cache, 4, 1)
    assert cache.length == 5
    with pytest.raises(ValueError, match="6 tokens do not fit a cache of capacity 5"):
        cache.extend(None, 1)
    assert cache.length == 5
    full = small_cache(5, kind=kind)
    append(full, 0, 5)
    with pytest.raises(ValueError, match="6 tokens do not fit a cache of capacity 5"):
        small_cache(5, kind=kind).extend(None, 6)


def test_ring_can_be_trimmed_before_it_overwrites_a_token():
    cache = small_cache()
    append(cache, 0, WINDOW)
    cache.trim(WINDOW - 1)
    assert append(cache, 3, 1) == [0, 1, 2, 3]
    append(cache, 4, 1)
    with pytest.raises(ValueError, match="window of 4 has overwritten earlier"):
        cache.trim(4)


@pytest.mark.catches("ring_is_one_token_short")
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("then", AROUND)
@pytest.mark.parametrize("first", AROUND)
@pytest.mark.parametrize("kind", ["window", "full"])
def test_windows_around_the_lengths_of_passes_match_the_reference(kind, first, then, padding):
    """A pass, another, and one more token, of a cache that is full in the end."""
    model = tiny_model(sliding_window=WINDOW)
    length = padding + first + then + 1
    segments = [[0] * padding + [1] * (length - padding), [1] * length]
    real, inputs = torch.tensor(segments) != 0, torch.randint(0, 31, (2, length))
    cache, parts = model.new_cache(2, length, kind), [padding + first, then, 1]
    with torch.no_grad():
        steps = [
            model(ids, mask if padding else None, cache=cache)
            for ids, mask in zip(inputs.split(parts, 1), real.split(parts, 1), strict=True)
        ]
        close(torch.cat(steps, 1), expected(model, inputs, segments), real)
    assert cache.length == cache.capacity == length


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 2])
def test_window_masks_nothing_in_shorter_texts(causal, length):
    """A causal window of 4 is the token and three before; both ways, two on each side."""
    model, plain = (tiny_model(causal=causal, sliding_window=w) for w in (WINDOW, None))
    inputs = torch.randint(0, 31, (1, length))
    with torch.no_grad():
        actual, without = model(inputs), plain(inputs)
        close(actual, expected(model, inputs, [[1] * length]), torch.ones(1, length).bool())
    reach = WINDOW - 1 if causal else WINDOW // 2  # how far the farthest key is that is seen
    assert torch.allclose(actual, without, atol=1e-5) == (length - 1 <= reach)


def greedy(model, prompt, steps, longest=None):
    """Uncached; past `longest` tokens only the last half of it is read again."""
    ids, start, longest = list(prompt), 0, longest or len(prompt) + steps
    for _ in range(steps):
        if len(ids) - start > longest:
            start = len(ids) - longest // 2
        ids.append(int(model(torch.tensor([ids[start:]]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 10, 11])
def test_generate_fills_max_seq_len_and_rejects_more(length, steps):
    model = tiny_model(max_seq_len=12)
    prompt = torch.randint(0, 31, (length,)).tolist()
    if length + steps > 12:
        with pytest.raises(UserError, match=f"ask for at most {12 - length} new token"):
            model.generate([prompt], steps, temperature=0)
    else:
        assert model.generate([prompt], steps, temperature=0) == [greedy(model, prompt, steps)]
    full = model.generate([prompt], 12 - length, temperature=0)
    assert full == [greedy(model, prompt, 12 - length)]
    with pytest.raises(UserError, match=f"ask for at most {12 - length} new token"):
        model.generate([prompt], 13 - length, temperature=0)


@pytest.mark.catches("sliding_text_is_cut_one_token_early")
@pytest.mark.parametrize("kernels", ["kernels", "torch"])
@pytest.mark.parametrize("total", [11, 12, 13, 14, 19, 20])
@pytest.mark.parametrize("length", [1, 11, 12])
def test_sliding_text_is_cut_one_token_beyond_max_seq_len(length, total, kernels, monkeypatch):
    if kernels == "torch":
        monkeypatch.setenv("MINIFORMER_KERNELS", "off")
    model = tiny_model(max_seq_len=12)
    prompt, steps = torch.randint(0, 31, (length,)).tolist(), max(1, total - length)
    expected = greedy(model, prompt, steps, longest=12)
    assert model.generate([prompt], steps, temperature=0, context_shift=True) == [expected]


@pytest.mark.parametrize("length", [255, 256, 257, 511, 512, 513])
def test_prompts_around_the_prefill_chunk_of_kernels(length):
    """256 tokens of a prompt go through the kernels together; past 512 PyTorch reads it."""
    model = tiny_model(max_seq_len=520, n_layers=1)
    prompt = torch.randint(0, 31, (1, length))
    with torch.no_grad():
        expected = model(prompt)[0, -1].log_softmax(-1)
    actual = model.generate(prompt, 1, temperature=0)[0, -1]
    assert int(actual) == int(expected.argmax())


@pytest.mark.parametrize("ended", range(4))
def test_row_that_finishes_with_its_first_token_does_not_change_others(ended):
    """A quarter of the rows is the fewest that are taken out of a batch."""
    model = tiny_model()
    prompts = torch.randint(0, 31, (4, 3)).tolist()
    free = model.generate(prompts, 6, temperature=0)
    end = free[ended][3]
    rows = model.generate(prompts, 6, temperature=0, eos_id=end)
    assert rows == [row[: 3 + row[3:].index(end)] if end in row[3:] else row for row in free]


@pytest.mark.parametrize(
    ("text", "size", "forbidden"),
    [
        ([7], 1, [7]), ([], 1, []), ([7], 2, []), ([7, 7], 2, [7]), ([7, 8], 2, []),
        ([7, 8, 7], 2, [8]), ([1, 2, 1], 3, []), ([1, 2, 3, 1, 2], 3, [3]),
    ],
)  # fmt: skip
def test_no_repeat_ngram_at_its_limits(text, size, forbidden):
    logits = no_repeat_ngram(
        torch.tensor([text]).long().view(1, -1), torch.zeros(1, 9), ngram_size=size
    )
    assert logits.isinf()[0].nonzero().flatten().tolist() == forbidden


@pytest.mark.parametrize(
    ("text", "run", "forbidden"),
    [([], [3], [3]), ([], [2, 3], []), ([2], [2, 3], [3]), ([2, 1], [2, 3], []),
     ([1, 2], [1, 2, 3], [3]), ([2], [1, 2, 3], [])],
)  # fmt: skip
def test_bad_words_mask_the_last_token_of_a_sequence(text, run, forbidden):
    logits = bad_words(
        torch.tensor([text]).long().view(1, -1), torch.zeros(1, 9), bad_words_ids=[run]
    )
    assert logits.isinf()[0].nonzero().flatten().tolist() == forbidden


@pytest.mark.parametrize(("new", "refused"), [(0, True), (1, True), (2, False)])
def test_min_new_tokens_at_its_limits(new, refused):
    """A prompt of 3 tokens and at least 2 new ones: the third may be the end."""
    logits = min_new_tokens(
        torch.zeros(1, 3 + new).long(), torch.zeros(1, 9), eos_token_ids=[5], min_length=3 + 2
    )
    assert bool(logits[0, 5].isinf()) is refused


@pytest.mark.parametrize(
    ("options", "retained"),
    [
        ({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_k": 4}, 4), ({"top_k": 5}, 4),
        ({"top_p": 0.49}, 1), ({"top_p": 0.51}, 2), ({"top_p": 0.74}, 2), ({"top_p": 0.76}, 3),
        ({"top_p": 1.0}, 4), ({"min_p": 0.51}, 1), ({"min_p": 0.49}, 2), ({"min_p": 0.26}, 2),
        ({"min_p": 0.24}, 4), ({"top_k": 2, "top_p": 0.66}, 1), ({"top_k": 2, "top_p": 0.67}, 2),
    ],
    ids=str,
)  # fmt: skip
def test_sampling_limits_retain_the_right_tokens(options, retained):
    """Of probabilities 1/2, 1/4, 1/8 and 1/8; top_p is of what top_k has left."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    result = sampling_distribution(logits, GenerationConfig(**options))
    assert int((result > 0).sum()) == retained
    assert result.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("distance", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 100])
@pytest.mark.parametrize("both_ways", [True, False])
def test_t5_buckets_at_their_limits(distance, both_ways):
    """32 buckets up to a distance of 16, as T5 has them of 128: half of them of one distance."""
    model = tiny_model(
        causal=not both_ways, position="t5_relative", relative_buckets=16, relative_max_distance=16
    )
    for offset in (-distance, distance):
        result = int(model.position._bucket(torch.tensor(offset)))
        assert result == reference.bucket(offset, both_ways, 16, 16)
