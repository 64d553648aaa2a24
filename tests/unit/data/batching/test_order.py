"""Batch orders that a user plugs in, against plain loops over their plans."""

import numpy as np
import pytest
import torch

from miniformer import MiniFormerDataModule, TrainConfig
from miniformer.config import ConfigError, UserError
from miniformer.data.batching import chunks
from miniformer.data.batching.chunks import RecordChunks
from miniformer.data.batching.length_bucketing import LengthBucketBatcher, pad_sequences
from miniformer.data.batching.order import BatchOrder, OrderedBatchLoader, build_order
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit.plugins import Poisson, ShortFirst, registered

RECORDS = [{"text": "x" * (1 + 7 * index % 20)} for index in range(60)]


@pytest.fixture(autouse=True)
def plugins():
    with registered():
        yield


def encode(records):
    return [{"ids": np.frombuffer(record["text"].encode(), np.uint8)} for record in records]


def collate(examples, rng):
    ids, mask = pad_sequences([example["ids"] for example in examples])
    return {"inputs": ids} if mask is None else {"inputs": ids, "attention_mask": mask}


def loader(order, *, keep=True, **options):
    source = RecordChunks(as_records(RECORDS), encode, chunk_size=16, keep_in_memory=keep)
    batcher = LengthBucketBatcher(collate, length_columns=("ids",), batch_size=4)
    return OrderedBatchLoader(source, batcher, order=order, **{"seed": 3, **options})


def sizes(batches):
    return [tuple(batch["inputs"].shape) for batch in batches]


@pytest.mark.parametrize("keep", [True, False])
def test_short_first_serves_longer_batches_as_the_schedule_grows(keep):
    batches = loader(ShortFirst(batches=15, start=0.1), keep=keep)
    longest = [max(shape[1] for shape in sizes(batches)) for _ in range(5)]
    assert longest[0] < longest[-1] == 20
    assert longest == sorted(longest)
    with pytest.raises(TypeError, match="may differ between epochs"):
        len(batches)


@pytest.mark.catches("state_of_an_order_is_lost", "order_resumes_from_the_state_after_its_plan")
@pytest.mark.parametrize("keep", [True, False])
def test_order_with_state_resumes_after_any_batch(keep):
    """Three epochs in one process, and each rest of them in a new one."""
    complete = loader(ShortFirst(batches=30), keep=keep)
    served = [batch for _ in range(3) for batch in complete]
    states = [batch["about"]["state"] for batch in served]
    for start in range(0, len(served), 5):
        resumed = loader(ShortFirst(batches=30), keep=keep)
        resumed.load_state_dict(states[start])
        assert resumed.state_dict() == states[start]
        rest = []
        while len(rest) < len(served) - start - 1:
            rest += list(resumed)
        for batch, repeated in zip(served[start + 1 :], rest, strict=False):
            assert torch.equal(batch["inputs"], repeated["inputs"])
            assert batch["about"]["state"] == repeated["about"]["state"]
            assert batch["about"]["epochs"] == repeated["about"]["epochs"]


@pytest.mark.catches("ranks_of_an_order_get_the_same_batches")
def test_poisson_sample_is_shared_among_ranks():
    """A step has each row with probability q, on one rank only."""
    parts = [list(loader(Poisson(0.25), rank=rank, world_size=2)) for rank in (0, 1)]
    unshared = list(loader(Poisson(0.25)))
    assert [len(batches) for batches in (*parts, unshared)] == [4, 4, 4]
    for index, batch in enumerate(unshared):
        rows = [len(part[index]["inputs"]) for part in parts]
        assert sum(rows) == len(batch["inputs"])
        assert abs(rows[0] - rows[1]) <= 1
        assert parts[0][index]["about"]["state"] == parts[1][index]["about"]["state"]


def test_poisson_draws_each_row_independently():
    """Counts of rows over many epochs have the mean and variance of a binomial distribution."""
    batches, epochs = loader(Poisson(0.25)), 200
    counts = np.zeros(60)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in batches:
            rows = batches.record_indices(batch["about"]["place"])
            assert len(rows) == len(batch["inputs"])
            counts[rows] += 1
    draws = 4 * epochs
    assert abs(counts.mean() - draws / 4) < 4 * np.sqrt(draws * 0.25 * 0.75 / 60)
    assert 0.5 < counts.var() / (draws * 0.25 * 0.75) < 1.7


@pytest.mark.catches("batch_without_rows_is_counted")
def test_batch_without_rows_is_not_counted():
    class Sparse(BatchOrder):
        def plan(self, context):
            rows = context.rows()
            return [rows[:3], rows[:0], rows[3:5]]

    first, empty, last = list(loader(Sparse()))
    assert [batch["about"]["repeated"] for batch in (first, empty, last)] == [False, True, False]
    assert empty["about"]["tokens"] == empty["about"]["padding"] == 0
    assert [batch["about"]["examples"] for batch in (first, empty, last)] == [0, 3, 3]
    assert [batch["about"]["epochs"] for batch in (first, empty, last)] == [1 / 3, 2 / 3, 1.0]


def test_order_that_needs_whole_epochs_holds_data_in_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(chunks, "MAX_IN_MEMORY_BYTES", 1)
    tokenizer = Tokenizer.train("byte", [])
    options = {"tokenizer": tokenizer, "seq_len": 8, "batch_size": 2}
    data = MiniFormerDataModule(RECORDS, batch_order=Poisson(0.5), **options)
    assert data.num_tokens("train") is not None
    assert MiniFormerDataModule(RECORDS, **options).num_tokens("train") is None
    loaders = [data.train_dataloader(), data.train_dataloader()]
    first, second = ([b["input_ids"].tolist() for b in loader] for loader in loaders)
    assert first == second, "each loader has its own order"
    with pytest.raises(UserError, match="Poisson needs whole epochs; leave streaming out"):
        MiniFormerDataModule(
            str(tmp_path / "t.jsonl"), batch_order=Poisson(0.5), streaming=True, **options
        ).setup()


def test_order_settings_are_checked():
    for setting, problem in (
        (
            "nearest",
            "batch_order: unknown batch order 'nearest'; known: reverse, short_first, poisson",
        ),
        ({}, "batch_order must be a name, or an object with a name as type"),
        ({"type": 3}, "batch_order must be a name, or an object with a name as type"),
        (["poisson"], "batch_order must be an object or a string or null"),
    ):
        with pytest.raises(ConfigError, match="batch_order") as error:
            TrainConfig(train_path="t.jsonl", batch_order=setting)
        assert problem in str(error.value)
    for setting, problem in (
        ({"type": "poisson", "p": 0.5}, "batch_order: poisson has no option 'p'"),
        ("poisson", "batch_order: poisson needs the option 'q'"),
        ({"type": "poisson", "q": 2}, "batch_order: poisson: q must be above 0 and at most 1"),
        ({"type": "tests.kit:tiny_config"}, "gives a TransformerConfig, not a miniformer.data"),
        ({"type": "tests.kit:nothing"}, "batch_order 'tests.kit:nothing' cannot be imported"),
    ):
        with pytest.raises(UserError) as raised:
            build_order(setting)
        assert problem in str(raised.value)
    assert TrainConfig(train_path="t", batch_order="tests.kit:X").batch_order == "tests.kit:X"


def test_order_problems_are_reported():
    class Odd(BatchOrder):
        state = 0

        def plan(self, context):
            return []

        def state_dict(self):
            return {"rng": self.state}

    with pytest.raises(UserError, match="batch_order: Odd has planned no batch"):
        list(loader(Odd()))
    order = Odd()
    order.state = np.zeros(2)
    with pytest.raises(UserError, match="the state of Odd is not JSON: Object of type ndarray"):
        loader(order)


def test_order_of_packed_windows():
    """Windows are rows, too."""
    tokenizer = Tokenizer.train("byte", [])
    data = MiniFormerDataModule(
        RECORDS, task=LanguageModeling(), tokenizer=tokenizer, seq_len=16, batch_size=4,
        batch_order={"type": "poisson", "q": 0.5},
    )  # fmt: skip
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    assert {batch["input_ids"].shape[1] for batch in batches} == {16}
