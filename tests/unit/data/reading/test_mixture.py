"""Mixtures of sources: draws by weight against counts, and records of all sources in order."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer import MiniFormerDataModule, Mixture, TrainConfig
from miniformer.config import ConfigError, UserError
from miniformer.data.batching import chunks
from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.holdout import hold_out
from miniformer.data.reading.mixture import MixtureShares, as_mixture
from miniformer.data.reading.records import RecordError, as_records
from miniformer.data.reading.schema import check_label, check_model_input
from miniformer.data.tokenizers.tokenizer import Tokenizer
from tests.kit import write_jsonl

SOURCES = st.lists(st.tuples(st.integers(1, 12), st.floats(0.01, 10)), min_size=1, max_size=4)


def mixture_of(sources):
    source_of = np.repeat(np.arange(len(sources)), [size for size, _ in sources])
    return MixtureShares([f"s{n}" for n in range(len(sources))], [w for _, w in sources], source_of)


@pytest.mark.catches(
    "weights_of_sources_are_ignored", "mixture_repeats_records_before_all_are_drawn"
)
@given(SOURCES, st.integers(0, 9))
def test_draws_follow_the_weights_and_repeat_no_record_before_the_others(sources, seed):
    mixture, total = mixture_of(sources), sum(size for size, _ in sources)
    counts = mixture.draws_per_epoch()
    exact = [total * weight / sum(w for _, w in sources) for _, weight in sources]
    assert counts.sum() == total
    assert counts.min() >= 1
    if min(exact) >= 1:
        assert all(abs(n - x) < 1 for n, x in zip(counts, exact, strict=True))
    drawn = Counter()
    for epoch in range(5):
        draws = mixture.draw(seed, epoch)
        assert np.bincount(mixture.source_of[draws], minlength=len(sources)).tolist() == [*counts]
        drawn.update(draws.tolist())
        for source in range(len(sources)):
            times = [drawn[row] for row in np.flatnonzero(mixture.source_of == source).tolist()]
            assert max(times) - min(times) <= 1
            assert sum(times) == (epoch + 1) * counts[source]


def test_draws_of_sources_without_records_are_none():
    """A fold, or the part that is not set aside, may have no record of a source."""
    mixture = mixture_of([(6, 1.0), (6, 1.0), (6, 2.0)]).take(np.array([0, 1, 12, 13, 14, 15]))
    assert mixture.draws_per_epoch().tolist() == [2, 0, 4]
    assert sorted(set(mixture.source_of[mixture.draw(0, 0)])) == [0, 2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", [f"a{n}" for n in range(9)])
    (tmp_path / "b").mkdir()
    for part in (0, 1):
        write_jsonl(tmp_path / "b" / f"{part}.jsonl", [f"b{part}{n}" for n in range(6)])
    (tmp_path / "c.txt").write_text("".join(f"line {n} of the text\n" for n in range(40)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


FORM = [{"path": "a.jsonl", "weight": 3}, {"path": "b/*.jsonl", "weight": 1}]


def test_records_of_a_mixture_are_those_of_its_sources(folder):
    records = as_records(as_mixture(FORM))
    texts = [record["text"] for record in records]
    assert texts == [f"a{n}" for n in range(9)] + [f"b{p}{n}" for p in (0, 1) for n in range(6)]
    rows = [20, 3, 9, 3]
    assert [record["text"] for record in records.read(rows)] == [texts[row] for row in rows]
    assert [records.location(row) for row in (8, 9, 20)] == [
        "a.jsonl:9", "b/0.jsonl:1", "b/1.jsonl:6",
    ]  # fmt: skip
    assert records.mixture.setting().value == (
        "21 records: 16 of a.jsonl (1.78 times each of its 9), "
        "5 of b/0.jsonl and 1 more file (0.417 times each of its 12)"
    )
    assert records.name == "a.jsonl and 1 more source"
    assert int(records.sizes.sum()) == records.n_bytes == sum(
        path.stat().st_size for path in folder.rglob("*.jsonl")
    )  # fmt: skip


def test_records_of_a_mixture_may_be_in_memory_and_in_tables(folder):
    (folder / "t.csv").write_text("input,label\nred,1\nblue,0\n")
    rows = [{"input": "green", "label": 1}]
    schema = {"input": check_model_input, "label": check_label}
    records = as_records(Mixture([("t.csv", 1), (rows, 2)]), schema)
    assert [(r["input"], r["label"]) for r in records] == [("red", 1), ("blue", 0), ("green", 1)]
    assert records.location(2) == "source 1, record 0"
    rows[0] = {"input": 3, "label": 1}
    with pytest.raises(UserError, match=r"^source 1, record 0: 'input' must be a string"):
        records[2]
    (folder / "t.csv").write_text("input,label\nred,1\nblue,\n")
    with pytest.raises(RecordError, match=r"^t.csv:3: "):
        list(as_records(Mixture([("t.csv", 1)]), schema))


@pytest.mark.catches("drawn_examples_are_the_first_ones", "every_epoch_of_a_mixture_is_the_first")
@pytest.mark.parametrize("keep", [True, False])
def test_epochs_of_a_mixture_serve_its_draws(folder, monkeypatch, keep):
    """Length buckets, and the same examples from memory and on demand."""
    if not keep:
        monkeypatch.setattr(chunks, "MAX_IN_MEMORY_BYTES", 1)
        monkeypatch.setattr(chunks, "_CHUNK_BYTES", 100)
    records = [{"input": f"{source}{n}", "label": n % 2} for source in "ab" for n in range(10)]
    mixture = Mixture([(records[:10], 4), (records[10:], 1)])
    tokenizer = Tokenizer.train("byte", [])
    data = MiniFormerDataModule(
        mixture, task="classification", tokenizer=tokenizer, batch_size=3, seed=2
    )
    data.setup()
    assert (data.num_tokens("train") is None) == (not keep)
    expected = as_records(mixture, data.task.schema).mixture
    loader = data.train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    for epoch in range(3):
        texts = Counter(
            re.sub("[^ab0-9]", "", tokenizer.decode(row))
            for batch in loader for row in batch["inputs"].tolist()
        )  # fmt: skip
        assert texts == Counter(records[row]["input"] for row in expected.draw(2, epoch).tolist())
        assert sum(n for text, n in texts.items() if text[0] == "a") == 16
    once = [row for batch in data.ordered_batches("train") for row in batch["inputs"].tolist()]
    assert len(once) == 20
    position = next(iter(loader))["about"]["place"]
    assert set(loader.record_indices(position)) <= set(range(20))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_columnar_store_takes_examples_with_repetitions(lengths, data):
    rows = [{"x": np.arange(n) + 10 * i, "y": i} for i, n in enumerate(lengths)]
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9))
    taken = ColumnarStore.from_examples(rows).take(np.array(indices, dtype=np.int64))
    assert len(taken) == len(indices)
    for position, index in enumerate(indices):
        assert taken[position]["x"].tolist() == rows[index]["x"].tolist()
        assert taken[position]["y"] == index


def test_text_of_a_mixture_is_divided_source_by_source(folder):
    """Plain text is cut at a line end; its blocks are documents, none of which continues."""
    records = as_records(Mixture([("c.txt", 1), ("a.jsonl", 1)]))
    train, val = hold_out(records, 0.25)
    text = (folder / "c.txt").read_text()
    assert train[0]["text"] + val[0]["text"] == text
    assert len(val) == 1
    assert not any("continues" in record for record in (*train, *val))
    assert train.mixture.draws_per_epoch().sum() == len(train) == 10
    train, val = hold_out(as_records(as_mixture(FORM)), 0.25)
    assert (len(train), len(val)) == (16, 5)
    assert len(train.mixture.source_of) == 16


@pytest.mark.catches("any_weight_of_a_source_is_valid")
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([{"path": "a", "weight": 0}], "train_path[0]: weight must be a number above 0, not 0"),
        ([{"path": "a", "weight": True}], "train_path[0]: weight must be a number above 0"),
        ([{"path": "a", "weight": float("nan")}], "train_path[0]: weight must be a number above"),
        ([{"path": "", "weight": 1}], "train_path[0]: path must be a path or a list of paths"),
        ([{"path": [], "weight": 1}], "train_path[0]: path must be a path or a list of paths"),
        (["b", {"path": "a", "weight": 1}], "train_path[0] must be an object with path and weight"),
        ('{"path": "a", "weight": 1}', "train_path must be a path, or a list in JSON such as [{"),
        ([{"path": "a", "wieght": 1}], "train_path[0] must be an object with path and weight"),
    ],
)
def test_invalid_sources_are_errors(value, problem):
    with pytest.raises(ConfigError) as error:
        TrainConfig(train_path=value)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["val_path", "test_path"])
def test_weights_of_validation_and_test_data_are_errors(name):
    with pytest.raises(ConfigError, match="val_path and test_path have no weights; name"):
        TrainConfig(train_path="a.jsonl", **{name: '[{"path": "b.jsonl", "weight": 1}]'})


def test_invalid_mixtures_are_errors(folder):
    with pytest.raises(UserError, match="mixture: the weight of source 1 must be a number above 0"):
        Mixture([("a.jsonl", 1), ("b/0.jsonl", -1)])
    with pytest.raises(UserError, match="mixture: there is no source"):
        Mixture([])
    with pytest.raises(UserError, match=r"no\.jsonl"):
        as_records(Mixture([("no.jsonl", 1)]))
    with pytest.raises(UserError, match=r"train_path\[1\] must be an object with path and weight"):
        as_mixture([*FORM[:1], "b.jsonl"])
    with pytest.raises(UserError, match=r"streaming reads files or '-' .*, without weights"):
        MiniFormerDataModule(FORM, tokenizer=None, streaming=True).setup()
