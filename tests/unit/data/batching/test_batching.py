"""Length bucketing and batch loading: each example once, in a resumable order."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.batching.chunks import RecordChunks, StreamChunks
from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import LengthBucketBatcher, pad_sequences
from miniformer.data.batching.loader import BatchLoader
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from tests.kit import VERSE, write_jsonl

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def table(lengths):
    rows = [np.full(length, index) for index, length in enumerate(lengths)]
    return ColumnarStore.from_examples([{"ids": row, "labels": len(row)} for row in rows])


def collate(examples, random=None):
    inputs, mask = pad_sequences([example["ids"] for example in examples])
    labels = torch.tensor([example["labels"] for example in examples])
    return {"inputs": inputs, "labels": labels} | ({} if mask is None else {"attention_mask": mask})


@pytest.mark.catches("budget_of_a_batch_ignores_padding")
@given(LENGTHS, st.integers(1, 9), st.none() | st.integers(1, 60), st.none() | st.integers(0, 9))
def test_buckets_hold_every_example_once_within_the_token_budget(lengths, size, tokens, seed):
    batcher = LengthBucketBatcher(
        collate, length_columns=("ids",), batch_size=size, batch_tokens=tokens
    )
    random = None if seed is None else np.random.default_rng(seed)
    chunk = table(lengths)
    plans = batcher.plan_batches(chunk, random)
    assert sorted(np.concatenate(plans)) == list(range(len(lengths)))
    most = tokens or size * np.mean(lengths)
    for plan in plans:
        longest = max(lengths[index] for index in plan)
        assert len(plan) == 1 or len(plan) * longest <= most
    # Similar lengths are together: a length between two of a batch is in that batch, or equals one.
    ends = sorted((min(lengths[i] for i in plan), max(lengths[i] for i in plan)) for plan in plans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ends))


@pytest.mark.catches("batch_that_is_just_full_is_cut_short")
@pytest.mark.parametrize("tokens", [None, 12])
def test_buckets_of_equal_lengths_are_full(tokens):
    batcher = LengthBucketBatcher(
        collate, length_columns=("ids",), batch_size=4, batch_tokens=tokens
    )
    plans = batcher.plan_batches(table([3] * 10), np.random.default_rng(0))
    assert sorted(map(len, plans)) == [2, 4, 4]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=60),
    st.none() | st.integers(0, 9),
)
def test_buckets_of_pairs_count_both_sides(lengths, seed):
    chunk = ColumnarStore.from_examples([{"a": np.zeros(a), "b": np.zeros(b)} for a, b in lengths])
    batcher = LengthBucketBatcher(collate, length_columns=("a", "b"), batch_size=3, batch_tokens=40)
    random = None if seed is None else np.random.default_rng(seed)
    plans = batcher.plan_batches(chunk, random)
    assert sorted(np.concatenate(plans)) == list(range(len(lengths)))
    for plan in plans:
        positions = sum(max(lengths[index][side] for index in plan) for side in (0, 1))
        assert len(plan) == 1 or len(plan) * positions <= 40


def test_buckets_group_pairs_by_both_lengths():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 20, (4000, 2))
    chunk = ColumnarStore.from_examples([{"a": np.zeros(a), "b": np.zeros(b)} for a, b in lengths])
    batcher = LengthBucketBatcher(collate, length_columns=("a", "b"), batch_size=8)
    real = positions = 0
    for plan in batcher.plan_batches(chunk, random):
        real += lengths[plan].sum()
        positions += len(plan) * lengths[plan].max(0).sum()
    assert real / positions > 0.95


@pytest.mark.catches("padding_has_no_mask")
@given(LENGTHS)
def test_pad_sequences_pads_right_and_returns_a_mask(lengths):
    rows = [np.arange(1, length + 1) for length in lengths]
    padded, mask = pad_sequences(rows, padding_value=0)
    assert padded.shape == (len(rows), max(lengths))
    seen = torch.ones_like(padded, dtype=torch.bool) if mask is None else mask
    assert [padded[i][seen[i]].tolist() for i in range(len(rows))] == [row.tolist() for row in rows]
    assert not padded[~seen].any()
    assert (mask is None) == (min(lengths) == max(lengths))


@pytest.mark.catches("joined_examples_lose_their_borders")
@given(LENGTHS.filter(len), st.data())
def test_columnar_store_returns_its_examples(lengths, data):
    plan = data.draw(st.integers(0, len(lengths)))
    rows = [{"x": np.arange(length), "y": length, "z": np.ones((length, 2))} for length in lengths]
    full = ColumnarStore.concatenate(
        [
            ColumnarStore.from_examples(rows[:plan]),
            ColumnarStore.from_examples([]),
            ColumnarStore.from_examples(rows[plan:]),
        ]
    )
    assert len(full) == len(rows)
    assert full.lengths("x").tolist() == lengths
    for index, row in enumerate(rows):
        result = full[index]
        assert result["x"].tolist() == row["x"].tolist()
        assert result["z"].shape == row["z"].shape
        assert result["y"] == row["y"]


RECORDS = [{"text": f"{'x' * (index % 7)}{index}"} for index in range(57)]


def encode(records):
    return [
        {"ids": np.frombuffer(text.encode(), np.uint8), "labels": int(text.strip("x"))}
        for text in (record["text"] for record in records)
    ]


def batches(tmp_path=None, *, keep=True, size=10, workers=0, **options):
    chunks = RecordChunks(
        as_records(RECORDS), encode, chunk_size=size, keep_in_memory=keep, num_workers=workers
    )
    batcher = LengthBucketBatcher(collate, length_columns=("ids",), batch_size=4)
    return BatchLoader(chunks, batcher, **{"seed": 5, **options})


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def labels(served):
    return [batch["labels"].tolist() for batch in served]


@pytest.mark.catches("padding_counts_as_tokens")
@pytest.mark.parametrize("keep", [True, False])
def test_batch_loader_serves_every_record_once_and_reports_progress(keep):
    loader = batches(keep=keep)
    for epoch in range(2):
        served = list(loader)
        assert sorted(flat(labels(served))) == list(range(57))
        epochs = [batch["about"]["epochs"] for batch in served]
        assert epochs == sorted(epochs)
        assert epochs[0] > epoch
        assert epochs[-1] == epoch + 1
        before = [batch["about"]["examples"] for batch in served]
        assert before == [0, *np.cumsum([len(batch["labels"]) for batch in served])[:-1]]
        for batch in served:
            real = (
                int(batch["attention_mask"].sum())
                if "attention_mask" in batch
                else batch["inputs"].numel()
            )
            assert batch["about"]["tokens"] == real
            assert batch["about"]["padding"] == batch["inputs"].numel() - real


@pytest.mark.catches("every_epoch_has_the_same_order")
@pytest.mark.parametrize("keep", [True, False])
def test_batch_loader_order_depends_on_epoch_and_seed(keep):
    loader, again = batches(keep=keep), batches(keep=keep)
    first, second = labels(loader), labels(loader)
    assert first == labels(again)
    assert first != second
    assert labels(batches(keep=keep, seed=6)) != first
    again.set_epoch(1)
    assert labels(again) == second
    assert flat(first) != sorted(flat(first))
    fixed = batches(keep=keep, seed=None)
    assert labels(fixed) == labels(fixed), "validation never changes"


@pytest.mark.catches("large_files_are_read_in_order")
def test_chunks_of_streamed_data_differ_between_epochs():
    chunks = RecordChunks(as_records(RECORDS), encode, chunk_size=10, keep_in_memory=False)
    first, second = (
        [
            sorted(chunk.columns["labels"].tolist())
            for chunk in chunks.iter_epoch(np.random.default_rng(seed))
        ]
        for seed in range(2)
    )
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(57))
    assert [len(chunk) for chunk in first] == [10, 10, 10, 10, 10, 7]
    assert not any(chunk in first for chunk in second)


@pytest.mark.catches("resumed_pass_begins_with_its_first_batch")
@pytest.mark.parametrize("keep", [True, False])
def test_batch_loader_resumes_exactly_after_any_batch(keep):
    full = batches(keep=keep)
    served = [batch for _ in range(2) for batch in full]
    for at in range(len(served)):
        resumed = batches(keep=keep)
        resumed.load_state_dict(json.loads(json.dumps(served[at]["about"]["state"])))
        rest = [batch for _ in range(3) for batch in resumed][: len(served) - at - 1]
        assert labels(rest) == labels(served[at + 1 :])
    part = batches(keep=keep)
    for batch, _ in zip(part, range(3), strict=False):
        assert part.state_dict() == batch["about"]["state"]


def test_batch_loader_starts_a_new_epoch_after_an_abandoned_one():
    loader = batches()
    next(iter(loader))
    full = batches()
    list(full)
    assert labels(loader) == labels(full)


@pytest.mark.parametrize("workers", [1, 2])
def test_batch_loader_workers_give_the_same_batches(workers):
    assert labels(batches(keep=False, workers=workers)) == labels(batches(keep=False))


@pytest.mark.catches("all_ranks_get_the_same_batches")
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("world_size", [2, 3])
def test_batch_loader_gives_ranks_equal_numbers_of_batches(keep, world_size):
    for seed in (0, None):  # in training and in validation
        alone = labels(batches(keep=keep, seed=seed))
        ranks = [
            list(batches(keep=keep, seed=seed, rank=r, world_size=world_size))
            for r in range(world_size)
        ]
        assert {len(rank) for rank in ranks} == {-(-len(alone) // world_size)}
        turns = [batch for turn in zip(*ranks, strict=True) for batch in turn]
        counted = [batch for batch in turns if not batch["about"]["repeated"]]
        assert labels(counted) == alone  # nothing is missing or counted twice
        for turn in zip(*ranks, strict=True):  # and all ranks are equally far
            assert len({str(batch["about"]["state"]) for batch in turn}) == 1
            assert len({batch["about"]["epochs"] for batch in turn}) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_batch_loader_traces_a_batch_to_its_records(keep):
    served = list(batches(keep=keep))
    for batch in served:
        result = batches(keep=keep).record_indices(batch["about"]["place"])
        assert sorted(result) == sorted(batch["labels"].tolist())


def test_batch_loader_has_a_length_if_data_is_in_memory():
    loader = batches()
    assert len(loader) == len(list(loader)) == len(list(loader))
    with pytest.raises(TypeError, match="not known before the end"):
        len(batches(keep=False))


@pytest.mark.catches("epochs_have_the_batches_of_the_first")
def test_length_is_that_of_each_epoch():
    """Pairs are sorted by either length, which can give another number of batches."""
    dice = np.random.default_rng(25)
    records = [{"text": f"{x} {y}"} for x, y in dice.integers(2, 31, (40, 2))]

    def encode_pair(rows):
        sizes = (map(int, row["text"].split()) for row in rows)
        return [{"a": np.ones(x), "b": np.ones(y)} for x, y in sizes]

    batcher = LengthBucketBatcher(
        lambda rows, rng: {"rows": len(rows)}, length_columns=("a", "b"), batch_size=3
    )
    schema = {"text": lambda value: None}
    loader = BatchLoader(RecordChunks(as_records(records, schema), encode_pair), batcher, seed=0)
    numbers = []
    for _ in range(8):
        numbers.append(len(loader))
        assert len(list(loader)) == numbers[-1]
    assert len({*numbers}) > 1
    loader.set_epoch(0)
    assert len(loader) == numbers[0]


def test_stream_is_served_in_chunks_in_order():
    chunks = StreamChunks(lambda: iter(RECORDS), encode, chunk_size=10)
    loader = BatchLoader(
        chunks, LengthBucketBatcher(collate, length_columns=("ids",), batch_size=4), seed=0
    )
    served = list(loader)
    assert sorted(flat(labels(served))) == list(range(57))
    first_pool = [batch for batch in served if batch["about"]["state"]["pool"] == 0]
    assert max(flat(labels(first_pool))) < 10
    resumed = BatchLoader(
        chunks, LengthBucketBatcher(collate, length_columns=("ids",), batch_size=4), seed=0
    )
    resumed.load_state_dict(served[4]["about"]["state"])
    assert labels(resumed) == labels(served[5:])


@pytest.mark.catches("bad_record_of_a_worker_is_dropped")
@pytest.mark.parametrize("workers", [0, 1])
def test_record_error_of_a_large_file_is_the_same_in_workers(tmp_path, workers):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "1"}\n' * 9 + '{"text": 3}\n')
    chunks = RecordChunks(as_records(path), encode, keep_in_memory=False, num_workers=workers)
    loader = BatchLoader(
        chunks, LengthBucketBatcher(collate, length_columns=("ids",), batch_size=4), seed=0
    )
    with pytest.raises(UserError, match=r"bad.jsonl:10: 'text' must be a string, not an integer"):
        list(loader)


def test_data_module_serves_the_records_of_files(tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    texts = [VERSE, "b", "", "ccc"]
    train = write_jsonl(tmp_path / "train.jsonl", texts)
    val = write_jsonl(tmp_path / "val.jsonl", ["short"])
    data = MiniFormerDataModule(train, val_path=val, tokenizer=tokenizer, batch_size=2, seq_len=8)
    loader = data.train_dataloader()
    full = [i for text in texts for i in (tokenizer.eos_id, *tokenizer.encode(text))]
    assert data.column_total("train", "ids") == len(full)
    assert data.column_total("train", "bytes") == len("".join(texts).encode())
    assert data.column_total("test", "ids") is None
    seen = torch.cat([batch["input_ids"] for batch in loader])
    assert seen.shape == (len(full) // 8, 8)
    (batch,) = data.val_dataloader()
    text = [i for i in batch["labels"].flatten().tolist() if i != IGNORE_INDEX]
    assert tokenizer.decode(text) == "short"
    assert batch["bytes"] == pytest.approx(5)
    assert data.test_dataloader() == []


def test_data_module_fits_the_task_to_records_in_memory():
    records = [{"input": "a" * n, "label": "odd" if n % 2 else "even"} for n in range(20)]
    data = MiniFormerDataModule(
        records, val_path=records[:3], tokenizer=Tokenizer.train("byte", []), task="classification"
    )
    data.setup()
    expected = Classification(classes=["even", "odd"], class_counts=[10, 10], input_kind="text")
    assert data.task == expected
    lengths = [
        int(n) - 1 for batch in data.train_dataloader()
        for n in (batch["attention_mask"].sum(1) if "attention_mask" in batch
                  else [batch["inputs"].shape[1]] * len(batch["inputs"]))
    ]  # fmt: skip
    assert sorted(lengths) == list(range(20))


@pytest.mark.catches("cut_examples_are_not_reported")
def test_truncated_examples_are_counted_and_reported():
    tokenizer = Tokenizer.train("byte", [])
    records = [{"source": "ab", "target": "c" * n} for n in (3, 7, 8, 20)]
    data = MiniFormerDataModule(records, tokenizer=tokenizer, task="seq2seq", seq_len=8)
    assert data.truncation_warning("train") == (
        "warning: 2 of 4 train examples were cut to seq_len=8 or the task's own limits; "
        "14 tokens are lost"
    )
    (batch,) = list(data.train_dataloader())
    lengths_seen = sorted((row != IGNORE_INDEX).sum().item() for row in batch["labels"])
    assert lengths_seen == [4, 8, 8, 8]
    ends = {
        row[row != IGNORE_INDEX][-1].item()
        for row in batch["labels"]
        if (row != IGNORE_INDEX).sum() == 8
    }
    assert ends == {tokenizer.eos_id, tokenizer.encode("c")[0]}, "a cut target has no end"


def test_data_larger_than_memory_limit_gives_the_same_batches(tmp_path, monkeypatch):
    """The windows are the same for data in memory and for data in chunks (here: one chunk)."""
    path = write_jsonl(tmp_path / "train.jsonl", [VERSE, "b", "ccc"])
    tokenizer = Tokenizer.train("byte", [])

    def first():
        data = MiniFormerDataModule(path, val_path=path, tokenizer=tokenizer, seq_len=8)
        return data, [batch["input_ids"] for batch in data.val_dataloader()]

    data, served = first()
    monkeypatch.setattr("miniformer.data.batching.chunks.MAX_IN_MEMORY_BYTES", 1)
    read, again = first()
    assert data.chunks["val"].in_memory is not None
    assert read.chunks["val"].in_memory is None
    assert torch.equal(torch.cat(served), torch.cat(again))
