"""Packing of whole examples, token by token, and best fit against a quadratic search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.example_packing import ExamplePackingBatcher, best_fit

B = 0  # BOS token
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=12)


def make_chunk(documents):
    return ColumnarStore.from_examples(
        [
            {
                "ids": np.array([B, *document], dtype=np.uint16),
                "learn": np.array([(token + index) % 3 > 0 for token in (B, *document)]),
                "number": np.arange(len(document) + 1),
                "bytes": 7,
            }
            for index, document in enumerate(documents)
        ]
    )


def batcher(seq_len, batch_size=4):
    return ExamplePackingBatcher(
        seq_len=seq_len, batch_size=batch_size, bos_id=B, columns=("number",)
    )


@pytest.mark.catches(
    "whole_packing_loses_the_mask", "segments_of_whole_examples_are_one", "examples_are_split"
)
@given(DOCUMENTS, st.integers(2, 12), st.one_of(st.none(), st.integers(0, 9)))
def test_windows_have_whole_examples_and_each_token_once(documents, seq_len, seed):
    packing, chunk = batcher(seq_len), make_chunk(documents)
    rng = None if seed is None else np.random.default_rng(seed)
    plans = packing.plan_batches(chunk, rng)
    assert max(map(len, plans)) <= 4
    assert max(map(len, plans)) - min(map(len, plans)) <= 1
    seen, num_bytes = [], 0.0
    for plan in plans:
        batch = packing.collate(chunk, plan)
        num_bytes += batch["bytes"]
        owners = packing.label_examples(chunk, plan)
        assert set(packing.example_indices(chunk, plan)) == set(owners.flatten())
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        segments = batch["segment_ids"].numpy() if "segment_ids" in batch else np.ones_like(ids)
        for row in range(len(ids)):
            for segment in range(1, segments[row].max() + 1):
                (columns,) = np.nonzero(segments[row] == segment)
                assert columns.tolist() == list(range(columns[0], columns[-1] + 1))
                (owner,) = {*owners[row, columns].tolist()}
                numbers = batch["number"][row, columns].tolist()
                tokens = [B, *documents[owner]]
                assert ids[row, columns].tolist() == [tokens[n] for n in numbers]
                following = [[*tokens, B][n + 1] for n in numbers]
                learn = [(tokens[n] + owner) % 3 > 0 for n in numbers]
                expected = [t if on else -100 for t, on in zip(following, learn, strict=True)]
                assert labels[row, columns].tolist() == expected
                if len(tokens) <= seq_len:
                    assert numbers == list(range(len(tokens))), "an example is not split"
                seen += [(owner, n) for n in numbers]
            assert set(labels[row, segments[row] == 0]) <= {-100}
    assert sorted(seen) == [(i, n) for i, d in enumerate(documents) for n in range(len(d) + 1)]
    if chunk.columns["learn"].any():
        assert abs(num_bytes - 7 * len(documents)) < 1e-6


@given(st.lists(st.integers(1, 9), max_size=30))
def test_best_fit_chooses_the_fullest_bin_with_room(lengths):
    rooms, expected = [], []
    for item, length in enumerate(lengths):
        fitting = [room for room in rooms if room >= length]
        rooms_left = sorted(rooms)
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(9 - length)
        assert len(rooms) >= len(rooms_left)
        expected.append(item)
    bins = best_fit(lengths, 9)
    assert sorted(item for group in bins for item in group) == expected
    assert sorted(9 - sum(lengths[item] for item in group) for group in bins) == sorted(rooms)


def test_whole_packing_differs_between_epochs_and_reports_padding():
    chunk = make_chunk([[1] * (n % 5) for n in range(40)] + [[2] * 11])
    packing = batcher(8)
    plans = [packing.plan_batches(chunk, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    first, repeated, changed = (
        [window.tolist() for plan in plan_list for window in plan] for plan_list in plans
    )
    assert first == repeated != changed
    num_windows, tokens = len(first), len(chunk.columns["ids"])
    assert packing.summary(chunk) == (
        f"{num_windows} windows of 8 tokens, {1 - tokens / 8 / num_windows:.1%} padding; "
        "1 examples are longer and are split"
    )
