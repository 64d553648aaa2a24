"""The same data in all formats: identical records, batches and classes."""

import csv
import gzip
import json
import pickle

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
import zstandard
from pyarrow import parquet

from miniformer.config import UserError
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading import schema
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.records import JSONLinesDataset, as_records
from miniformer.data.reading.streaming import stream_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.regression import Regression

TEXTS = ["plain, with a comma", 'a "quoted" word', "two\nlines", "  blanks kept  ", "", "é;ü|\t'"]
ROWS = [
    {"id": 7 * i, "body": TEXTS[i % 6] + "x" * (i % 4), "grade": [3, 10, 2][i % 3], "share": i / 8}
    for i in range(30)
]
MAPPING = FieldMapping(input_field="body", label_field="grade", quoting="double")
SCHEMA = {"input": schema.check_model_input, "label": schema.check_label}


def write_delimited(path, delimiter):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_text(path, text):
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


def lines():
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write_arrow(path, stream):
    table = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=7):
            writer.write_batch(batch)
    return path


def write_dataset(path):
    datasets.Dataset.from_list(ROWS).save_to_disk(path, num_shards=2)
    return path


def write_parquet(path):
    parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    return path


SOURCES = {
    "csv": lambda folder: write_delimited(folder / "a.csv", ","),
    "csv with bars": lambda folder: write_delimited(folder / "a.csv", "|"),
    "tsv": lambda folder: write_delimited(folder / "a.tsv", "\t"),
    "csv.zst": lambda folder: write_text(
        folder / "a.csv.zst", write_delimited(folder / "b.csv", ";").read_text("utf-8")
    ),
    "csv of pandas": lambda folder: pd.DataFrame(ROWS).to_csv(folder / "a.csv", index=False)
    or folder / "a.csv",
    "jsonl.gz": lambda folder: write_text(folder / "a.jsonl.gz", lines()),
    "json": lambda folder: write_text(folder / "a.json", json.dumps(ROWS, indent=1)),
    "parquet": lambda folder: write_parquet(folder / "a.parquet"),
    "arrow": lambda folder: write_arrow(folder / "a.arrow", stream=False),
    "arrow stream": lambda folder: write_arrow(folder / "a.arrow", stream=True),
    "folder of datasets": lambda folder: write_dataset(folder / "set"),
    "list": lambda folder: ROWS,
    "pandas": lambda folder: pd.DataFrame(ROWS),
    "pandas of arrow": lambda folder: pd.DataFrame(ROWS).convert_dtypes(),
    "polars": lambda folder: pl.DataFrame(ROWS),
    "polars lazily": lambda folder: pl.LazyFrame(ROWS),
    "pyarrow": lambda folder: pa.Table.from_pylist(ROWS),
    "datasets": lambda folder: datasets.Dataset.from_list(ROWS),
    "datasets of tensors": lambda folder: datasets.Dataset.from_list(ROWS).with_format("torch"),
    "several files": lambda folder: [
        write_delimited(folder / "a.csv", ","), write_parquet(folder / "b.parquet")
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("byte", [])


def batches(source, tokenizer):
    """Batches of an epoch, and the task."""
    data = MiniFormerDataModule(
        source, tokenizer=tokenizer, task="classification", mapping=MAPPING, batch_size=4
    )
    data.setup()
    return list(data.train_dataloader()), data.task


@pytest.fixture(scope="module")
def expected(tmp_path_factory, tokenizer):
    path = write_text(tmp_path_factory.mktemp("lines") / "a.jsonl", lines())
    return list(as_records(path, SCHEMA, mapping=MAPPING)), *batches(path, tokenizer)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.catches("integers_of_tables_stay_text", "rows_of_parquet_are_of_the_first_group")
def test_all_formats_give_the_same_records_and_batches(tmp_path, kind, expected, tokenizer):
    source = SOURCES[kind](tmp_path)
    records = as_records(source, SCHEMA, mapping=MAPPING)
    actual = list(records)
    assert actual == expected[0] * (2 if kind == "several files" else 1)
    assert [list(map(type, record.values())) for record in actual[:30]] == [
        list(map(type, record.values())) for record in expected[0]
    ]
    assert records.read([29, 3, 3, 8]) == [actual[i] for i in (29, 3, 3, 8)]
    assert list(pickle.loads(pickle.dumps(records))) == actual
    assert records.n_bytes == records.sizes.sum() or records.n_bytes > 0
    if kind == "several files":
        return
    own, task = batches(source, tokenizer)
    assert task == expected[2]
    assert len(own) == len(expected[1])
    for batch, reference in zip(own, expected[1], strict=True):
        assert batch.keys() == reference.keys()
        for name, value in reference.items():
            same = torch.equal if isinstance(value, torch.Tensor) else np.array_equal
            assert name == "about" or same(batch[name], value), name
    if hasattr(source, "suffix"):
        assert [record for _, record in stream_records(source, SCHEMA, MAPPING)] == actual


def test_parquet_rows_are_located_and_checked(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"input": ["a", None, "c"], "value": [1.5, 2.5, None]}), path)
    records = JSONLinesDataset(path, Regression().schema)
    with pytest.raises(UserError, match=r"a.parquet:2: 'input' must be a string, two strings"):
        records[1]
    with pytest.raises(UserError, match=r"a.parquet:3: 'value' must be a finite number, not null"):
        records[2]


@pytest.mark.catches("missing_numbers_of_frames_are_nan")
def test_values_of_tables_are_plain(tmp_path):
    """Dates, decimals, missing numbers and arrays of numpy."""
    stamp = pd.Timestamp("2024-05-01 12:00")
    frame = pd.DataFrame({
        "input": [np.ones((2, 1)).tolist()] * 2, "value": [1.0, 2.0], "when": [stamp, pd.NaT],
        "missing": [np.nan, 3.0], "name": pd.Series(["a", None], dtype=object),
    })  # fmt: skip
    expected = [
        {"input": [[1.0], [1.0]], "value": 1.0, "when": "2024-05-01T12:00:00", "missing": None,
         "name": "a"},
        {"input": [[1.0], [1.0]], "value": 2.0, "when": None, "missing": 3.0, "name": None},
    ]  # fmt: skip
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, tmp_path / "a.parquet", pl.from_pandas(frame)):
        assert list(as_records(source, Regression().schema)) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: write_parquet(folder / "a.parquet"), "a.parquet: there is no columns? "),
        (lambda folder: pd.DataFrame(ROWS), "records: there is no columns? "),
        (lambda folder: datasets.Dataset.from_list(ROWS), "records: there is no columns? "),
    ],
)
@pytest.mark.catches("columns_of_tables_are_not_checked")
def test_tables_without_a_column_name_the_flags(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as caught:
        as_records(make(tmp_path), SCHEMA)
    assert "'id', 'body', 'grade', 'share'; name the columns: input_field='body'" in str(
        caught.value
    )


def test_unusable_tables_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"a.parquet: not a valid .parquet file"):
        JSONLinesDataset(tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(b"no arrow")
    with pytest.raises(UserError, match=r"a.arrow: not a valid .arrow file"):
        JSONLinesDataset(tmp_path / "a.arrow")
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet: the file is empty"):
        JSONLinesDataset(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"no.parquet: No such file"):
        JSONLinesDataset(tmp_path / "no.parquet")
    frame = pd.DataFrame([[1, 2]], columns=["text", "text"])
    with pytest.raises(UserError, match=r"the column 'text' twice"):
        as_records(frame)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train").mkdir()
    (tmp_path / "splits" / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match=r"has the splits train; name one: .*splits/train"):
        JSONLinesDataset(tmp_path / "splits")


def test_changed_parquet_file_is_noticed(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["a", "b"]}), path)
    records = JSONLinesDataset(path)
    assert records[0] == {"text": "a"}
    records._indexed_files[0].close()
    parquet.write_table(pa.table({"text": ["longer", "b", "c"]}), path)
    with pytest.raises(UserError, match="changed while it was in use"):
        records[0]


def test_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
    import sys

    write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    with pytest.raises(UserError, match=r'pip install "miniformer\[parquet\]"'):
        JSONLinesDataset(tmp_path / "a.parquet")
