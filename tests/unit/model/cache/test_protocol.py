"""The contract of caches, for every registered kind and two of a plug-in."""

import random
from functools import cache as memoize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from miniformer import Seq2SeqTransformer, UserError, registry
from miniformer.model import stack
from miniformer.model.cache.protocol import Cache, PassCache
from miniformer.model.masks import AttentionMask
from miniformer.model.memory import Memory
from tests.kit import caches, tiny_model
from tests.unit.model.cache.conftest import KINDS

SHAPES = {
    "rotary": {},
    "window": {"sliding_window": 3},
    "pattern": {"sliding_window": 4, "window_pattern": "LG", "n_kv_heads": 2},
    "alibi": {"position": "alibi"},
    "relative": {"position": "t5_relative", "relative_buckets": 8, "relative_max_distance": 9},
    "learned": {"position": "learned", "qk_norm": "head"},
}
ROUNDING = {"int8": 0.3, "bfloat16": 0.3}  # greatest difference of the logits of a lossy kind
CAPACITY = 64


@memoize
def model_of(shape):
    return tiny_model(max_seq_len=CAPACITY, **SHAPES[shape])


def close(actual, expected, kind=None):
    """Compares logits; a lossy cache may round a value to its other neighbor."""
    tolerance = 0.02 if kind in ROUNDING else 1e-4
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def full_pass(model, kind, rows):
    """Next logits of each row alone; a lossy kind rounds the keys of this pass, too."""
    caches = [model.new_cache(1, CAPACITY, kind) if kind in ROUNDING else None for _ in rows]
    pairs = zip(rows, caches, strict=True)
    return torch.stack([model(torch.tensor([row]), cache=cache)[0, -1] for row, cache in pairs])


def numbers(count, seed=0):
    return random.Random(seed).choices(range(31), k=count)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_prefill_and_steps_equal_full_passes(kind, shape):
    """Rows are padded on the left and in the middle; steps go far beyond the windows."""
    model, ids = model_of(shape), torch.tensor([numbers(24), numbers(24, 1)])
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[1, :2] = mask[1, 7:9] = False
    exact = torch.cat([model(ids[row : row + 1, mask[row]])[0] for row in range(2)])
    for padded, splits in ((True, [5, 1, 4, *[1] * 14]), (False, [24])):
        cache = model.new_cache(2, 24, kind)
        parts = [
            model(part, real if padded else None, cache=cache)
            for part, real in zip(ids.split(splits, 1), mask.split(splits, 1), strict=True)
        ]
        expected = exact if padded else model(ids).flatten(0, 1)
        actual = torch.cat(parts, 1)[mask] if padded else torch.cat(parts, 1).flatten(0, 1)
        if kind in ROUNDING:
            assert 0 < (actual - expected).abs().max() < ROUNDING[kind]
        else:
            close(actual, expected)
        assert cache.lengths.tolist() == ([24, 20] if padded else [24, 24])


class Rows:
    """A cache and the rows of tokens that it should hold."""

    def __init__(self, model, kind, seed):
        self.model, self.kind, self.random = model, kind, random.Random(seed)
        self.cache = model.new_cache(2, CAPACITY, kind)
        self.rows = [[], []]

    def tokens(self, rows, length):
        return torch.tensor([self.random.choices(range(31), k=length) for _ in range(rows)])

    def append(self, masks):
        ids = self.tokens(len(self.rows), len(masks))
        mask = torch.tensor(masks)[:, : len(self.rows)].T
        if len(mask) < len(self.rows):
            mask = mask[[n % len(mask) for n in range(len(self.rows))]]
        logits = self.model(ids, None if mask.all() else mask, cache=self.cache)
        for row, tokens, real, row_logits in zip(self.rows, ids, mask, logits, strict=True):
            row += tokens[real].tolist()
            if real.any():
                expected = full_pass(self.model, self.kind, [row])[0]
                close(row_logits[real.nonzero().max()], expected, self.kind)

    def trim(self, less):
        lengths = [max(0, len(row) - n) for row, n in zip(self.rows, less * 9, strict=False)]
        try:
            self.cache.trim(torch.tensor(lengths))
        except ValueError as error:  # a ring has overwritten the tokens; nothing has changed
            if "make it with kind='full'" not in str(error):
                raise
            return
        self.rows = [row[:n] for row, n in zip(self.rows, lengths, strict=True)]

    def reorder(self, rows):
        rows = [n % len(self.rows) for n in (rows * 9)[: len(self.rows)]]
        self.cache.reorder(torch.tensor(rows))
        self.rows = [[*self.rows[n]] for n in rows]

    def select(self, rows):
        rows = [n % len(self.rows) for n in rows]
        self.cache.select(torch.tensor(rows))
        self.rows = [[*self.rows[n]] for n in rows]

    def insert(self, prompts):
        rows = self.random.sample(range(len(self.rows)), min(len(prompts), len(self.rows)))
        donor = Rows(self.model, self.kind, self.random.random())
        donor.cache, donor.rows = (
            self.model.new_cache(len(rows), CAPACITY, self.kind),
            [[] for _ in rows],
        )
        width = max(prompts)
        donor.append(
            [[column >= width - n for n in prompts[: len(rows)]] for column in range(width)]
        )
        before = donor.cache.state_dict()
        self.cache.insert(torch.tensor(rows), donor.cache)
        for number, row in enumerate(rows):
            self.rows[row] = donor.rows[number]
        assert all(torch.equal(x, before[name]) for name, x in donor.cache.state_dict().items())

    def compact(self, _):
        self.cache.compact()
        assert self.cache.length == max(map(len, self.rows))

    def reload(self, _):
        state = self.cache.state_dict()
        assert all(x.is_contiguous() for x in state.values())
        self.cache = self.model.new_cache(len(self.rows), CAPACITY, self.kind)
        self.cache.load_state_dict(state)


few = st.integers(0, 3)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1,
                                              max_size=4)),
        st.tuples(st.just("trim"), st.tuples(few, few)),
        st.tuples(st.just("reorder"), st.tuples(few, few)),
        st.tuples(st.just("select"), st.lists(few, min_size=1, max_size=3)),
        st.tuples(st.just("insert"), st.lists(st.integers(1, 6), min_size=1, max_size=2)),
        st.tuples(st.sampled_from(["compact", "reload"]), st.none()),
    ),
    min_size=2, max_size=8,
)  # fmt: skip


@pytest.mark.catches(
    "compaction_leaves_keys_behind", "inserted_row_sees_its_predecessor", "insertion_forgets_a_ring"
)
@settings(max_examples=100)
@given(OPERATIONS, st.sampled_from(KINDS), st.sampled_from([*SHAPES]), st.integers(0, 99))
@torch.inference_mode()
def test_operations_equal_operations_on_token_lists(program, kind, shape, seed):
    rows = Rows(model_of(shape), kind, seed)
    for name, argument in [*program, ("append", [(True, True)])]:
        getattr(rows, name)(argument)
        assert rows.cache.lengths.tolist() == [len(row) for row in rows.rows]
        assert rows.cache.batch_size == len(rows.rows)


@pytest.mark.catches("inserted_row_takes_the_length_of_its_predecessor")
@torch.inference_mode()
def test_inserted_rows_keep_their_final_lengths(kind):
    dynamic = {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 3}
    model = tiny_model(rotary_scaling=dynamic)
    cache, donor = (model.new_cache(rows, 20, kind) for rows in (3, 1))
    cache.final_lengths, donor.final_lengths = torch.tensor([[9], [6], [12]]), torch.tensor([[7]])
    ids = torch.tensor([numbers(4, n) for n in range(4)])
    model(ids[:3], cache=cache)
    alone = [model.new_cache(1, 20, kind) for _ in range(2)]
    for number, (row, length) in enumerate(((0, 9), (3, 7))):
        alone[number].final_lengths[:] = length
        model(ids[row : row + 1], cache=alone[number])
    model(ids[3:], cache=donor)
    cache.insert(torch.tensor([1]), donor)
    assert cache.final_lengths.tolist() == [[9], [7], [12]]
    logits = model(torch.tensor([[5]] * 3), cache=cache)
    close(logits[:2], torch.cat([model(torch.tensor([[5]]), cache=item) for item in alone]))


@torch.inference_mode()
def test_capacity_counts_after_compaction(kind):
    """Rows that leave free their columns; a full cache is an error that changes nothing."""
    model = tiny_model()
    cache = model.new_cache(2, 8, kind)
    model(torch.tensor([numbers(7), numbers(7)]), cache=cache)
    cache.trim(torch.tensor([0, 2]))
    cache.compact()
    assert cache.length == 2
    model(torch.tensor([numbers(6, 1), numbers(6, 2)]), cache=cache)
    with pytest.raises(ValueError, match=r"9 .*do not fit a cache of capacity 8"):
        model(torch.tensor([[1], [1]]), cache=cache)
    assert (cache.length, cache.capacity) == (8, 8)
    expected = full_pass(model, kind, [[*numbers(2), *numbers(5, 2), 7]])
    cache.trim(torch.tensor([5, 7]))
    close(model(torch.tensor([[1], [7]]), cache=cache)[1], expected)


@torch.inference_mode()
def test_state_goes_through_a_file(kind, tmp_path):
    model = model_of("pattern")
    cache = model.new_cache(2, 12, kind)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    model(torch.tensor([numbers(3), numbers(3, 1)]), mask, cache=cache)
    save_file(cache.state_dict(), tmp_path / "cache.safetensors")
    fresh = model.new_cache(2, 14, kind)
    fresh.load_state_dict(load_file(tmp_path / "cache.safetensors"))
    new = torch.tensor([[4, 5], [6, 7]])
    torch.testing.assert_close(model(new, cache=fresh), model(new, cache=cache))
    with pytest.raises(ValueError, match="another kind of cache or model"):
        model.new_cache(1, 12, kind).load_state_dict(cache.state_dict())


def test_wrong_rows_and_lengths_are_refused(kind):
    model = model_of("rotary")
    cache = model.new_cache(3, 8, kind)
    with pytest.raises(ValueError, match=r"rows must be int \[3\]"):
        cache.reorder(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="lengths must be at least 0, not -1"):
        cache.trim(-1)
    another = next(name for name in KINDS if name != kind)
    with pytest.raises(ValueError, match="rows of another cache cannot be inserted"):
        cache.insert(torch.tensor([0]), model.new_cache(1, 8, another))
    with pytest.raises(ValueError, match="rows of another cache cannot be inserted"):
        cache.insert(torch.tensor([0, 1]), model.new_cache(1, 8, kind))
    assert cache.nbytes >= 0
    members = {*vars(PassCache), *vars(Cache)}
    assert {name for name in members if not name.startswith("_")} <= {*dir(cache)}


@torch.inference_mode()
def test_sources_are_selected_inserted_and_dropped(kind):
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    sources = [numbers(n, n) for n in (5, 3, 8)]
    rows = [[1, 4], [2, 7], [3, 9]]
    memories = [model.encode(torch.tensor([source])) for source in sources]

    def filled(row):
        cache = model.new_cache(1, 16, kind)
        model.features(torch.tensor([rows[row]]), memories[row], cache=cache)
        return cache

    cache = filled(0)
    cache.select(torch.tensor([0, 0]))
    cache.insert(torch.tensor([1]), filled(1))
    joined = memories[0].select(torch.tensor([0, 0])).insert(torch.tensor([1]), memories[1])
    cache.insert(torch.tensor([0]), filled(2))
    joined = joined.insert(torch.tensor([0]), memories[2])
    cache.reorder(torch.tensor([1, 0]))
    joined = joined.select(torch.tensor([1, 0]))
    new = torch.tensor([[8], [6]])
    actual = model.logits(model.features(new, joined, cache=cache))[:, 0]
    for logits, row, token in zip(actual, (1, 2), (8, 6), strict=True):
        alone = filled(row)
        features = model.features(torch.tensor([[token]]), memories[row], cache=alone)
        close(logits, model.logits(features)[0, 0])
    with pytest.raises(ValueError, match="one cache has a source"):
        cache.insert(torch.tensor([0]), model.new_cache(1, 16, kind))
    cache.trim(0)
    assert cache.cross_kv is None


@pytest.mark.catches("grown_source_is_not_seen")
@pytest.mark.parametrize("padded", [False, True])
@torch.inference_mode()
def test_source_may_grow_between_passes(kind, padded, monkeypatch):
    """As of a stream: the reference is one pass in which each token sees the source of its time."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    target = torch.tensor([numbers(6), numbers(6, 1)])
    parts = [torch.tensor([numbers(n, n), numbers(n, n + 1)]) for n in (4, 1, 3)]
    masks = [torch.ones_like(part).bool() for part in parts]
    if padded:
        masks[1][0] = masks[2][1, 0] = False
    encoded = [model.encode(part, mask) for part, mask in zip(parts, masks, strict=True)]
    sources = [torch.cat([memory.features for memory in encoded[:n]], 1) for n in (1, 2, 3)]
    cache, steps, projected = model.new_cache(2, 6, kind), [], []
    for layer in model.decoder.layers:
        layer.cross_attention.k_proj.register_forward_hook(
            lambda _, args, out: projected.append(args[0].shape[1])
        )
    for number, ids in enumerate(target.split([3, 1, 2], 1)):
        mask = torch.cat(masks[: number + 1], 1) if padded else None
        steps.append(model.features(ids, Memory(sources[number], mask), cache=cache))
    assert projected == [4, 4, 1, 1, 3, 3]
    with pytest.raises(ValueError, match="a source may grow, not shrink from 8 columns to 5"):
        cache.source_kv(0, sources[1], None)
    seen = torch.tensor([4, 4, 4, 5, 8, 8])[:, None] > torch.arange(8)  # [T, S]
    allowed = seen[None, None] & (torch.cat(masks, 1)[:, None, None] if padded else True)
    monkeypatch.setattr(stack, "make_cross_mask", lambda mask: AttentionMask(allowed))
    # A lossy kind rounds the keys of the decoder, not those of the source.
    expected = model.features(target, Memory(sources[2], None), cache=model.new_cache(2, 6, kind))
    close(torch.cat(steps, 1), expected)


@pytest.mark.catches("rows_read_the_source_of_a_neighbor")
@torch.inference_mode()
def test_consecutive_rows_share_a_source(kind):
    """Its keys and values are stored once, and reordering stays among the rows of a source."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    source = torch.tensor([numbers(5), numbers(5, 1)])
    memory = model.encode(source, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    target = torch.tensor([numbers(4, n) for n in range(6)])
    copies = torch.arange(2).repeat_interleave(3)
    expected = model.features(target, memory.select(copies), cache=model.new_cache(6, 8, kind))
    cache = model.new_cache(6, 8, kind)
    first = model.features(target[:, :3], memory, cache=cache)
    close(first, expected[:, :3])
    rows = torch.tensor([2, 0, 1, 3, 3, 4])
    cache.reorder(rows, same_source=True)
    close(model.features(target[rows, 3:], memory, cache=cache), expected[rows, 3:])
    assert all(keys.shape[0] == 2 for keys, _ in cache.cross_kv)
    with pytest.raises(ValueError, match="2 sources, 5 targets"):
        model.features(target[:5], memory, cache=model.new_cache(5, 8, kind))
    with pytest.raises(ValueError, match="2 sources, 6 targets"):
        model.features(target, memory)


def test_options_of_a_kind_reach_it():
    cache = tiny_model().new_cache(2, 8, {"type": "paged", "page_size": 3})
    assert cache.page_size == 3
    with pytest.raises(UserError, match=r"paged has no option 'size' \(did you mean"):
        tiny_model().new_cache(2, 8, {"type": "paged", "size": 3})
    with pytest.raises(UserError, match=r"unknown cache 'page' \(did you mean 'paged'\?\)"):
        tiny_model().new_cache(2, 8, "page")


def test_pages_are_freed():
    model = tiny_model()
    cache = model.new_cache(2, 20, "paged")
    for _ in range(4):
        model(torch.tensor([numbers(15), numbers(15)]), cache=cache)
        cache.trim(torch.tensor([0, 3]))
        cache.compact()
    assert cache.storage.shape[2] == 9  # of 4 tokens each
    assert registry.get("cache", "paged") is caches.PagedCache
