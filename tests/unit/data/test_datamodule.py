"""Order and randomness of training: new in each epoch, chunk and batch, equal with equal seeds."""

import json
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from miniformer.data.batching import chunks as chunking
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.masked_lm import MaskedLM

BYTES = Tokenizer.train("byte", [])
COUNT = 60


@pytest.fixture(params=["kept", "large"])
def chunks(request, monkeypatch):
    """Data in one chunk in memory, or in several chunks that are read on demand."""
    if request.param == "large":
        monkeypatch.setattr(chunking, "MAX_IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(chunking, "_CHUNK_BYTES", 400)
    return request.param


def epochs(path, task, number=3, *, tokenizer=BYTES, seed=0, **options):
    """Batches of several epochs."""
    data = MiniFormerDataModule(
        path, task=task, tokenizer=tokenizer, seed=seed, batch_size=4, seq_len=64, **options
    )
    loader = data.train_dataloader()
    return [list(loader) for _ in range(number)]


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.catches("large_files_are_read_in_order")
def test_epochs_have_every_record_once_in_orders_that_differ(tmp_path, chunks):
    records = [{"input": [[float(n)]], "label": n % 2} for n in range(COUNT)]
    path = written(tmp_path / "a.jsonl", records)
    task = Classification(standardize=False)

    def orders(seed):
        batches = epochs(path, task, tokenizer=None, seed=seed)
        return [
            [round(x) for b in epoch for x in b["inputs"].flatten().tolist()] for epoch in batches
        ]

    batches = orders(0)
    for order in batches:
        assert sorted(order) == list(range(COUNT))
        assert order != list(range(COUNT))
    assert all(first != second for first, second in combinations(batches, 2))
    assert orders(0) == batches
    assert orders(1) != batches
    if chunks == "large":  # records of a chunk are not those of the next epoch's
        shared = [
            len(set(first[:12]) & set(second[:12])) for first, second in combinations(batches, 2)
        ]
        assert max(shared) < 12


def test_epochs_of_large_text_have_every_block_once(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "MAX_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(chunking, "_CHUNK_BYTES", 1)
    monkeypatch.setattr("miniformer.data.reading.index.TEXT_BLOCK_BYTES", 100)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{n:07d}\n" for n in range(200)))
    data = MiniFormerDataModule(path, task="language_modeling", tokenizer=BYTES, seq_len=64)
    data.setup()
    orders = []
    for epoch in range(3):
        tables = data.chunks["train"].iter_epoch(np.random.default_rng(epoch))
        text = "".join(BYTES.decode(table.columns["ids"].tolist()) for table in tables)
        orders.append([int(line) for line in text.split()])
        assert sorted(orders[-1]) == list(range(200))
    assert all(first != second for first, second in combinations(orders, 2))


def drawn(batches, name):
    """Random tensor `name` of each full batch; all records are equal."""
    return [[batch[name] for batch in epoch if len(batch[name]) == 4] for epoch in batches]


@pytest.mark.catches("batches_of_a_chunk_draw_the_same", "chunks_draw_the_same")
def test_masks_differ_between_batches_chunks_and_epochs(tmp_path, chunks):
    path = written(tmp_path / "a.jsonl", [{"text": "abcdefghijklmnopqrstuvwxyz" * 2}] * COUNT)
    batches = drawn(epochs(path, MaskedLM(), number=2), "labels")
    every = [labels.tolist() for epoch in batches for labels in epoch]
    assert len(every) >= 2 * COUNT // 4 - 2 * 8
    assert len({json.dumps(labels) for labels in every}) == len(every)
    again = drawn(epochs(path, MaskedLM(), number=2), "labels")
    assert [labels.tolist() for epoch in again for labels in epoch] == every


@pytest.mark.catches("batches_of_a_chunk_draw_the_same", "chunks_draw_the_same")
def test_bpe_dropout_differs_between_batches_chunks_and_epochs(tmp_path, chunks):
    text = "the cat sat on the mat and the dog sat by the door"
    bpe = Tokenizer.train("bpe", [text] * 9, 300)
    records = [{"input": text, "label": n % 2} for n in range(COUNT)]
    path = written(tmp_path / "a.jsonl", records)
    task = Classification(bpe_dropout=0.3)
    batches = drawn(epochs(path, task, number=2, tokenizer=bpe), "inputs")
    every = [inputs.tolist() for epoch in batches for inputs in epoch]
    assert len({json.dumps(inputs) for inputs in every}) == len(every) >= 20
    (usual,) = {bpe.decode(row) for inputs in every for row in inputs}
    assert usual.startswith(text)


@pytest.mark.catches("chunks_draw_the_same")
def test_windows_of_chunks_have_different_offsets(tmp_path, monkeypatch):
    """Offset of each chunk's windows; all documents are equal."""
    monkeypatch.setattr(chunking, "MAX_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(chunking, "_CHUNK_BYTES", 2000)
    path = written(tmp_path / "a.jsonl", [{"text": "abcdefghijklmnopqrs"}] * 400)
    (epoch,) = epochs(path, "language_modeling", number=1)
    firsts = []
    for first, second in pairwise([None, *epoch]):
        if first is None or first["about"]["place"]["pool"] != second["about"]["place"]["pool"]:
            firsts.append(int(torch.remainder(second["input_ids"][0, 0], 20)))
    assert len(firsts) > 3
    assert len(set(firsts)) > 1
