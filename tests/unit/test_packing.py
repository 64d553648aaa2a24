"""Packed windows against a list of documents, token by token."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.packing import IGNORED, PackedTokens, WindowSampler
from miniformer.data.tokenizer import Tokenizer
from tests.kit import VERSE, write_jsonl

B = 0  # the boundary
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=5)


def packed(documents, seq_len, endless):
    row = np.array([token for document in documents for token in (B, *document)], dtype=np.uint16)
    return PackedTokens(row, seq_len=seq_len, boundary_id=B, n_bytes=len(row), endless=endless)


def pairs(inputs, labels):
    return [
        (int(i), int(t))
        for row, targets in zip(inputs, labels, strict=True)
        for i, t in zip(row, targets, strict=True)
        if t != IGNORED
    ]


def wanted_pairs(documents):
    """(token, next token) of every document: from its beginning boundary to its end."""
    whole = [token for document in documents for token in (B, *document)] + [B]
    return list(itertools.pairwise(whole))


@given(DOCUMENTS, st.integers(1, 6))
def test_validation_predicts_every_token_exactly_once(documents, seq_len):
    data = packed(documents, seq_len, endless=False)
    starts = range(0, len(data.tokens), seq_len)
    assert len(data) == len(starts)
    batch = data.collate([data[start] for start in starts])
    assert pairs(batch["input_ids"], batch["labels"]) == wanted_pairs(documents)


@given(DOCUMENTS, st.integers(1, 6), st.integers(0, 3), st.integers(0, 3))
def test_training_predicts_each_token_at_most_once_an_epoch(documents, seq_len, seed, epoch):
    data = packed(documents, seq_len, endless=True)
    sampler = WindowSampler(data, seed=seed)
    sampler.set_epoch(epoch)
    starts = list(sampler)
    assert len(starts) == len(sampler) == max(1, len(data.tokens) // seq_len)
    columns = [(start + t) % len(data.tokens) for start in starts for t in range(seq_len)]
    if len(data.tokens) >= seq_len:
        assert len(set(columns)) == len(columns)
    batch = data.collate([data[start] for start in starts])
    ring = wanted_pairs(documents)
    assert pairs(batch["input_ids"], batch["labels"]) == [ring[column] for column in columns]


@given(DOCUMENTS, st.integers(1, 6), st.booleans())
def test_tokens_share_a_segment_if_and_only_if_they_share_a_document(documents, seq_len, endless):
    data = packed(documents, seq_len, endless)
    batch = data.collate([data[start] for start in range(0, len(data.tokens), seq_len)])
    inputs, labels = batch["input_ids"], batch["labels"]
    segments = batch.get("segment_ids", torch.ones_like(inputs))
    for row, ids, targets in zip(segments, inputs, labels, strict=True):
        for t in range(1, seq_len):
            if targets[t] == IGNORED:
                assert row[t] == 0
            else:
                assert (row[t] != row[t - 1]) == (ids[t] == B)
        assert row[0] == (0 if targets[0] == IGNORED else 1)


def test_order_changes_with_epoch_and_seed_and_repeats_with_both():
    data = packed([list(range(1, 200))], 4, endless=True)

    def order(seed, epoch):
        sampler = WindowSampler(data, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != sorted(order(0, 0)), "windows must not come in the order of the text"


def test_the_data_module_serves_what_the_files_hold(tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    texts = [VERSE, "b", "", "ccc"]
    train = write_jsonl(tmp_path / "train.jsonl", texts)
    val = write_jsonl(tmp_path / "val.jsonl", ["short"])
    data = MiniFormerDataModule(train, val_path=val, tokenizer=tokenizer, batch_size=2, seq_len=8)
    loader = data.train_dataloader()
    assert isinstance(loader, DataLoader)
    whole = [i for text in texts for i in (tokenizer.boundary_id, *tokenizer.encode(text))]
    assert data.train_data.tokens.tolist() == whole
    assert data.train_data.n_bytes == len("".join(texts).encode())
    seen = torch.cat([batch["input_ids"] for batch in loader])
    assert seen.shape == (len(whole) // 8, 8)
    (batch,) = data.val_dataloader()
    text = [i for i in batch["labels"].flatten().tolist() if i != IGNORED]
    assert tokenizer.decode(text) == "short"
    assert data.val_data.bytes_per_token == pytest.approx(5 / 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_processes_change_nothing(tmp_path, workers):
    path = write_jsonl(tmp_path / "train.jsonl", [VERSE])
    tokenizer = Tokenizer.train("byte", [])
    data = MiniFormerDataModule(path, tokenizer=tokenizer, seq_len=16, num_workers=workers, seed=3)
    first = next(iter(data.train_dataloader()))
    sampler = WindowSampler(data.train_data, seed=3)
    start = next(iter(sampler))
    assert first["input_ids"][0].tolist() == data.train_data[start][0].tolist()
