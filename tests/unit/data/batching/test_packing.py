"""Packed windows against a list of documents, token by token."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.packing import IGNORE_INDEX, PackedBatcher

B = 0  # BOS token
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=5)


def make_chunk(documents, begins=True):
    """A chunk of documents; the first may start mid-document."""
    rows = [np.array([B, *document], dtype=np.uint16) for document in documents]
    if not begins:
        rows[0] = rows[0][1:]
    return ColumnarStore.from_examples([{"ids": row, "bytes": 2 * len(row)} for row in rows])


def windows(seq_len, *, endless, batch_size=100):
    return PackedBatcher(seq_len=seq_len, batch_size=batch_size, bos_id=B, wrap=endless)


def pairs(inputs, labels):
    return [
        (int(i), int(t))
        for row, targets in zip(inputs, labels, strict=True)
        for i, t in zip(row, targets, strict=True)
        if t != IGNORE_INDEX
    ]


def expected_pairs(documents):
    """Pairs (token, next token) of all documents, from the BOS token to the next one."""
    full = [token for document in documents for token in (B, *document)] + [B]
    return list(itertools.pairwise(full))


@pytest.mark.catches("labels_are_the_inputs", "validation_leaves_out_the_last_window")
@given(DOCUMENTS, st.integers(1, 6), st.integers(1, 4))
def test_packed_validation_predicts_every_token_exactly_once(documents, seq_len, batch_size):
    batcher, chunk = windows(seq_len, endless=False, batch_size=batch_size), make_chunk(documents)
    batches = [batcher.collate(chunk, plan) for plan in batcher.plan_batches(chunk, None)]
    result = [pair for b in batches for pair in pairs(b["input_ids"], b["labels"])]
    assert result == expected_pairs(documents)
    # Every byte of text counts once, for metrics per byte.
    assert abs(sum(b["bytes"] for b in batches) - 2 * len(result)) < 1e-6
    assert {len(b["labels"]) for b in batches} <= {batch_size, *range(1, batch_size)}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), DOCUMENTS, st.integers(1, 6))
def test_packed_chunk_may_begin_within_a_document(rest, documents, seq_len):
    """The document may continue in the next chunk, so its last token has no label."""
    batcher, chunk = windows(seq_len, endless=False), make_chunk([rest, *documents], begins=False)
    (plan,) = batcher.plan_batches(chunk, None)
    batch = batcher.collate(chunk, plan)
    full = [*rest, *(token for document in documents for token in (B, *document))]
    assert pairs(batch["input_ids"], batch["labels"]) == list(itertools.pairwise(full))


@given(DOCUMENTS, st.integers(1, 6), st.integers(0, 3), st.integers(1, 4))
def test_packed_training_predicts_each_token_at_most_once_an_epoch(
    documents, seq_len, seed, batch_size
):
    batcher, chunk = windows(seq_len, endless=True, batch_size=batch_size), make_chunk(documents)
    tokens = chunk.columns["ids"]
    plans = batcher.plan_batches(chunk, np.random.default_rng(seed))
    starts = np.concatenate(plans)
    assert len(starts) == batcher.num_windows(chunk) == max(1, len(tokens) // seq_len)
    sizes = [len(plan) for plan in plans]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1, "no small batch is left over at the end"
    columns = [(start + t) % len(tokens) for start in starts for t in range(seq_len)]
    if len(tokens) >= seq_len:
        assert len(set(columns)) == len(columns)
    batches = [batcher.collate(chunk, plan) for plan in plans]
    ring = expected_pairs(documents)
    result = [pair for b in batches for pair in pairs(b["input_ids"], b["labels"])]
    assert result == [ring[column] for column in columns]


@pytest.mark.catches("documents_of_a_window_are_one")
@given(DOCUMENTS, st.integers(1, 6), st.booleans())
def test_packed_segments_are_documents(documents, seq_len, endless):
    batcher, chunk = windows(seq_len, endless=endless), make_chunk(documents)
    (plan,) = batcher.plan_batches(chunk, None)
    batch = batcher.collate(chunk, plan)
    inputs, labels = batch["input_ids"], batch["labels"]
    segments = batch.get("segment_ids", torch.ones_like(inputs))
    for row, ids, targets in zip(segments, inputs, labels, strict=True):
        for t in range(1, seq_len):
            if targets[t] == IGNORE_INDEX:
                assert row[t] == 0
            else:
                assert (row[t] != row[t - 1]) == (ids[t] == B)
        assert row[0] == (0 if targets[0] == IGNORE_INDEX else 1)


def test_packed_windows_have_random_order_and_offset():
    batcher, chunk = windows(4, endless=True), make_chunk([list(range(1, 200))])

    def order(seed):
        return np.concatenate(batcher.plan_batches(chunk, np.random.default_rng(seed))).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != sorted(order(0)), "windows must not come in the order of the text"
    assert len({start % 4 for seed in range(9) for start in order(seed)}) > 1


@given(DOCUMENTS, st.integers(1, 6), st.booleans())
def test_packed_windows_know_their_documents(documents, seq_len, endless):
    chunk = make_chunk(documents)
    batcher = windows(seq_len, endless=endless, batch_size=2)
    owner = np.repeat(np.arange(len(documents)), chunk.lengths("ids"))
    for starts in batcher.plan_batches(chunk, np.random.default_rng(0) if endless else None):
        positions = [int(start) + i for start in starts for i in range(seq_len)]
        inside = [position for position in positions if endless or position < len(owner)]
        expected = sorted({int(owner[position % len(owner)]) for position in inside})
        assert batcher.example_indices(chunk, starts).tolist() == expected


def test_further_columns_of_tokens_are_cut_like_tokens():
    """A task may have columns of its own, and no bytes of text."""
    rows = [{"ids": np.array([B, 3, 4]), "pitch": np.array([0.5, 3.5, 4.5], np.float32)},
            {"ids": np.array([B, 7]), "pitch": np.array([0.5, 7.5], np.float32)}]  # fmt: skip
    batcher = PackedBatcher(seq_len=2, batch_size=9, bos_id=B, wrap=False, columns=("pitch",))
    chunk = ColumnarStore.from_examples(rows)
    (plan,) = batcher.plan_batches(chunk, None)
    batch = batcher.collate(chunk, plan)
    assert batch["bytes"] == 0.0
    assert batch["pitch"].dtype == torch.float32
    assert (batch["pitch"] == batch["input_ids"] + 0.5).all()
