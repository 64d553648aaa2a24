"""Masks and positions against their definition, one pair of tokens at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.masks import (
    AttentionMask,
    Visibility,
    make_cross_mask,
    make_mask,
    make_positions,
    make_sequence_lengths,
    make_visibility,
)
from tests.kit import tiny_model

CPU = torch.device("cpu")
WINDOWS = st.sampled_from([None, 1, 2, 3, 4, 5, 20])
ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=10)


def spelled_out(mask, queries, keys):
    """A mask of any form as a list of lists."""
    if mask.allowed is None:
        return [[not mask.is_causal or s <= t for s in range(keys)] for t in range(queries)]
    allowed = mask.allowed
    assert allowed.any(-1).all(), "softmax over nothing would be NaN"
    if mask.fully_masked is not None:
        allowed = allowed & ~mask.fully_masked
    return allowed[0, 0].tolist()


def near(query, key, window, causal):
    if window is None:
        return True
    return query - key < window if causal else abs(query - key) <= window // 2


@pytest.mark.catches("causal_mask_shows_the_next_token", "window_sees_one_token_more")
@given(st.booleans(), st.integers(1, 8), WINDOWS, st.booleans())
def test_make_mask_without_padding(causal, length, window, explicit):
    seen = make_visibility(2, length, causal=causal, window=window, device=CPU)
    mask = make_mask(seen, explicit=explicit)
    assert spelled_out(mask, length, length) == [
        [(not causal or s <= t) and near(t, s, window, causal) for s in range(length)]
        for t in range(length)
    ]
    if explicit:
        assert not mask.is_causal
    if not causal and window is None:
        assert mask == AttentionMask(), "nothing is hidden, so there is nothing to write out"


@pytest.mark.catches("packed_documents_see_each_other")
@given(st.booleans(), ROWS, WINDOWS)
def test_make_mask_with_segments_padding_and_windows(causal, row, window):
    segments, real = zip(*row, strict=True)
    seen = make_visibility(
        1, len(row), causal=causal, window=window, segment_ids=torch.tensor([segments]),
        attention_mask=torch.tensor([real]), device=CPU,
    )  # fmt: skip
    positions = [sum(row[s] == (row[t][0], True) for s in range(t)) for t in range(len(row))]
    expected = [
        [
            own == key_segment != 0 and both and (not causal or s <= t)
            and near(positions[t], positions[s], window, causal)
            for s, (key_segment, is_real) in enumerate(row)
            for both in [is_real and row[t][1]]
        ]
        for t, (own, _) in enumerate(row)
    ]  # fmt: skip
    actual = spelled_out(make_mask(seen), len(row), len(row))
    for t in range(len(row)):
        if row[t][1]:  # the visibility of padded queries does not matter
            assert actual[t] == expected[t]


@pytest.mark.catches("padding_is_attended_to")
@given(st.booleans(), st.lists(st.booleans(), min_size=1, max_size=8))
def test_make_mask_hides_padding(causal, real):
    seen = make_visibility(
        1, len(real), causal=causal, attention_mask=torch.tensor([real]), device=CPU
    )
    result = spelled_out(make_mask(seen), len(real), len(real))
    for t, is_real in enumerate(real):
        if is_real:
            assert result[t] == [key and (not causal or s <= t) for s, key in enumerate(real)]


@given(st.integers(1, 8), st.integers(1, 8), WINDOWS)
def test_make_mask_of_cached_queries(past, new, window):
    stop = past + new
    queries = torch.arange(past, stop)[None]
    seen = Visibility(True, window, queries, torch.arange(stop)[None], is_dense=True)
    assert spelled_out(make_mask(seen, explicit=True), new, stop) == [
        [s <= past + t and near(past + t, s, window, True) for s in range(stop)] for t in range(new)
    ]


@given(st.data(), st.integers(1, 6), st.integers(1, 4), WINDOWS)
def test_make_mask_of_keys_in_any_order(data, keys, queries, window):
    """As in a ring buffer, or after rows were trimmed."""
    key_positions = data.draw(st.permutations(range(-2, keys)))
    query_positions = data.draw(st.lists(st.integers(0, 8), min_size=queries, max_size=queries))
    seen = Visibility(True, window, torch.tensor([query_positions]), torch.tensor([key_positions]))
    assert spelled_out(make_mask(seen), queries, len(key_positions)) == [
        [0 <= s <= t and near(t, s, window, True) for s in key_positions] for t in query_positions
    ]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3))
def test_make_cross_mask(real):
    mask = make_cross_mask(torch.tensor(real))
    allowed = mask.allowed & ~mask.fully_masked
    assert allowed[:, 0, 0].tolist() == real
    assert mask.allowed.any(-1).all()
    assert make_cross_mask(None) == AttentionMask()


@pytest.mark.catches("padding_takes_a_position")
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_make_positions_counts_real_tokens(real):
    positions = make_positions(1, len(real), attention_mask=torch.tensor([real]), device=CPU)
    for t, is_real in enumerate(real):
        if is_real:
            assert positions[0, t] == sum(real[:t])
        assert 0 <= positions[0, t] < len(real)


@pytest.mark.catches("positions_do_not_restart_with_a_document")
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_make_positions_restarts_with_each_segment(lengths):
    segments = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
    positions = make_positions(1, len(segments), segment_ids=torch.tensor([segments]), device=CPU)
    assert positions[0].tolist() == [t for length in lengths for t in range(length)]


@given(ROWS)
def test_make_positions_of_interleaved_segments(row):
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


@given(ROWS, st.booleans())
def test_make_sequence_lengths(row, packed):
    segments, real = zip(*row, strict=True)
    if not packed:
        segments = (1,) * len(row)
    ids, mask = torch.tensor([segments]), torch.tensor([real])
    lengths = make_sequence_lengths(
        len(row), attention_mask=mask, segment_ids=ids if packed else None, device=CPU
    ).expand(1, len(row))
    for t, (segment, is_real) in enumerate(zip(segments, real, strict=True)):
        if is_real and segment:
            assert lengths[0, t] == list(zip(segments, real, strict=True)).count((segment, True))
    assert make_sequence_lengths(len(row), device=CPU).tolist() == [[len(row)]]


@pytest.mark.catches("any_number_names_a_segment")
@pytest.mark.parametrize(
    ("segment_ids", "message"),
    [
        (torch.ones(2, 3), "must be integers .*, not torch.float32"),
        (torch.ones(2, 3).bool(), "must be integers .*, not torch.bool; .*attention_mask"),
        (torch.tensor([[1, 1, 2], [1, -1, 2]]), "must be at least 0, not -1; 0 is padding"),
        (torch.ones(2, 4).long(), r"must be \[2, 3\], as the inputs are, not \[2, 4\]"),
    ],
)
def test_check_segments_rejects_wrong_ids(segment_ids, message):
    with pytest.raises(ValueError, match=f"segment_ids {message}"):
        tiny_model()(torch.zeros(2, 3).long(), segment_ids=segment_ids)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_segment_ids_of_any_integer_type(dtype):
    model, ids = tiny_model(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    segments, mask = torch.tensor([[0, 1, 1, 2, 2, 2]]), ids != 9
    expected = model(ids, mask, segment_ids=segments)
    torch.testing.assert_close(model(ids, mask, segment_ids=segments.to(dtype)), expected)


def test_segment_ids_in_functorch_transforms():
    """Tensors inside torch.func have no values to check."""
    from torch.func import functional_call, grad, vmap

    model = tiny_model()
    set_attention_backend(model, "plain")  # the one that torch.func takes without a warning
    ids = torch.randint(0, 31, (2, 1, 4))
    segments = torch.tensor([[[1, 1, 2, 2]], [[1, 2, 2, 2]]])
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights, ids, segments):
        return functional_call(model, weights, (ids,), {"segment_ids": segments}).square().sum()

    per_sample = vmap(grad(loss), (None, 0, 0))(weights, ids, segments)
    single = grad(loss)(weights, ids[1], segments[1])
    for name, gradient in single.items():
        torch.testing.assert_close(per_sample[name][1], gradient, rtol=1e-4, atol=1e-4)
