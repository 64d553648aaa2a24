"""Masks and positions against their definition, one pair of tokens at a time."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.model.attention import attend
from miniformer.model.masks import AttentionMask, make_cached_mask, make_mask, make_positions

LENGTHS = st.integers(1, 8)
CPU = torch.device("cpu")


def spelled_out(mask, queries, keys):
    """Who may attend to whom, as a list of lists, whichever form the mask has."""
    if mask.allowed is None:
        return [
            [not mask.is_causal or s <= t + keys - queries for s in range(keys)]
            for t in range(queries)
        ]
    allowed = mask.allowed
    if mask.blind is not None:
        allowed = allowed & ~mask.blind
    return allowed[0, 0].tolist()


@given(st.booleans(), LENGTHS)
def test_no_padding_needs_no_tensor(causal, length):
    mask = make_mask(causal=causal)
    assert mask.allowed is None
    assert spelled_out(mask, length, length) == [
        [not causal or s <= t for s in range(length)] for t in range(length)
    ]


@given(st.booleans(), st.lists(st.booleans(), min_size=1, max_size=8))
def test_padding_is_seen_by_nobody(causal, real):
    mask = make_mask(causal=causal, attention_mask=torch.tensor([real]))
    assert spelled_out(mask, len(real), len(real)) == [
        [seen and (not causal or s <= t) for s, seen in enumerate(real)] for t in range(len(real))
    ]


@given(st.booleans(), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_segments_see_themselves_only(causal, segments):
    mask = make_mask(causal=causal, segment_ids=torch.tensor([segments]))
    assert spelled_out(mask, len(segments), len(segments)) == [
        [own == other != 0 and (not causal or s <= t) for s, other in enumerate(segments)]
        for t, own in enumerate(segments)
    ]


@given(LENGTHS, LENGTHS, st.data())
def test_cached_queries_see_the_columns_up_to_their_own(past, new, data):
    stop = past + new
    real = data.draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=stop, max_size=stop)))
    tensor = None if real is None else torch.tensor([real])
    mask = make_cached_mask(tensor, start=past, stop=stop, device=CPU)
    assert spelled_out(mask, new, stop) == [
        [(real is None or real[s]) and s <= past + t for s in range(stop)] for t in range(new)
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_positions_count_real_tokens(real):
    positions = make_positions(1, len(real), attention_mask=torch.tensor([real]), device=CPU)
    for t, is_real in enumerate(real):
        if is_real:
            assert positions[0, t] == sum(real[:t])
        assert 0 <= positions[0, t] < len(real)


@given(st.lists(st.tuples(st.integers(1, 4)), min_size=1, max_size=4))
def test_positions_restart_with_each_segment(lengths):
    segments = [number for number, (length,) in enumerate(lengths, 1) for _ in range(length)]
    positions = make_positions(1, len(segments), segment_ids=torch.tensor([segments]), device=CPU)
    assert positions[0].tolist() == [t for (length,) in lengths for t in range(length)]


def test_a_query_that_may_attend_to_nothing_gets_zeros_and_no_nan_gradient():
    q = torch.randn(1, 2, 3, 4, requires_grad=True)
    k, v = torch.randn(2, 1, 2, 3, 4)
    mask = make_mask(causal=True, attention_mask=torch.tensor([[False, True, True]]))
    out = attend(q, k, v, mask)
    assert torch.equal(out[0, :, 0], torch.zeros(2, 4))
    assert out[0, :, 1:].abs().min() > 0
    out.sum().backward()
    assert q.grad.isfinite().all()


def test_no_mask_lets_everyone_see_everyone():
    assert spelled_out(AttentionMask(), 2, 2) == [[True, True], [True, True]]


ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=10)


@given(ROWS)
def test_positions_count_the_real_tokens_of_a_segment_wherever_they_stand(row):
    """Segments in any order and interleaved, padding inside them."""
    segments, real = zip(*row, strict=True)
    positions = make_positions(
        1, len(row), segment_ids=torch.tensor([segments]), attention_mask=torch.tensor([real]),
        device=CPU,
    )  # fmt: skip
    for t, (segment, is_real) in enumerate(row):
        assert 0 <= positions[0, t] < len(row)
        if is_real:
            assert positions[0, t] == sum(row[s] == (segment, True) for s in range(t))


@given(ROWS)
def test_segments_and_padding_together(row):
    segments, real = zip(*row, strict=True)
    mask = make_mask(
        causal=False, segment_ids=torch.tensor([segments]), attention_mask=torch.tensor([real])
    )
    assert spelled_out(mask, len(row), len(row)) == [
        [own == other != 0 and seen for other, seen in row] for own in segments
    ]
