import errno
import gzip
import io
import json
import multiprocessing
import os
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.reading import index, records, schema
from miniformer.data.reading.records import (
    TEXT_SCHEMA,
    InMemoryRecords,
    JSONLinesDataset,
    RecordError,
    as_records,
)
from miniformer.data.reading.streaming import stream_records
from miniformer.data.selection import RecordSubset
from tests.kit import write_jsonl


def test_records_by_index_and_in_order(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\r\n\n  \n{"text": "zw\xc3\xb6lf", "more": 1}\n{"text": ""}')
    data = JSONLinesDataset(path)
    assert len(data) == 3
    expected = [{"text": "one"}, {"text": "zwölf", "more": 1}, {"text": ""}]
    assert [data[0], data[1], data[2]] == expected == list(data)
    assert data[-1] == expected[2]
    with pytest.raises(IndexError, match="record 3 of 3"):
        data[3]


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_records_of_any_text_round_trip(tmp_path_factory, texts):
    path = write_jsonl(tmp_path_factory.mktemp("records") / "a.jsonl", texts)
    assert [record["text"] for record in JSONLinesDataset(path)] == texts


def test_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx")
    assert JSONLinesDataset(tmp_path / "a.jsonl")[0] == {"text": "x"}
    assert JSONLinesDataset(tmp_path / "a.txt")[0] == {"text": "x"}


def test_text_file_is_one_record(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    data = JSONLinesDataset(path)
    assert data.is_plain_text
    assert list(data) == [{"text": "one\n\ntwo\n"}] == [data[0]]


@pytest.mark.catches(
    "repeated_names_are_not_noticed",
    "line_numbers_skip_blank_lines",
    "error_of_a_worker_loses_its_line",
)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a\tb"}', "not JSON: Invalid control character at column 12; each line"),
        (b'{"text": "a"', "not JSON"),
        (b'{"text": ', "not JSON: Expecting value at column 10; each line is one object"),
        (
            b"[",
            "not JSON: Expecting value at column 2; the file seems to be one JSON array: rename",
        ),
        (b"{'text': 'a'}", "at column 2; JSON has double quotes: write records with json.dumps"),
        (b'{"txt": "a"}', "the record has no 'text' (it has 'txt'); add that field"),
        (b'{"text": 7}', "'text' must be a string, not an integer"),
        (b'["a"]', "expected a JSON object, found '[\"a\"]'"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff; save the file as UTF-8"),
        (b'{"text": "a\\ud83d"}', "character 1 of 'text' is '\\ud83d', half of a surrogate pair"),
        (b'{"text": 1, "text": "a"}', "duplicate field 'text'; keep one"),
        (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"text": "a", "n": ' + b"7" * 5000 + b"}", "an integer has too many digits"),
        (b'{"text": "a"} {"text": "b"}', "not JSON: Extra data at column 15; each line is one"),
    ],
)
def test_record_error_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    with pytest.raises(RecordError) as caught:
        list(JSONLinesDataset(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert "cut off" not in str(caught.value)
    with pytest.raises(RecordError) as streamed:
        list(stream_records(path))
    assert str(streamed.value) == str(caught.value) == str(pickle.loads(pickle.dumps(caught.value)))


@pytest.mark.catches("stream_names_the_line_that_a_piece_begins_with")
def test_invalid_utf8_in_a_text_file_is_named_by_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\ngood\nb\xffd\n")
    for read in (lambda: list(JSONLinesDataset(path)), lambda: list(stream_records(path))):
        with pytest.raises(RecordError, match=r"a\.txt:3: not UTF-8: byte 0xff"):
            read()


@pytest.mark.catches("binary_files_are_read_as_text")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "No such file or directory"),
        ("empty.jsonl", b"", "the file is empty; it needs at least one record"),
        ("blank.jsonl", b"\n \n", "the file is empty"),
        ("empty.txt", b"", "the file is empty"),
        (
            "table.xlsx",
            b"a",
            "unknown file type '.xlsx', a spreadsheet: save it as .csv (UTF-8); use .jsonl, .json",
        ),
        ("table.docx", b"a", "unknown file type '.docx'; use .jsonl, .json, .txt, .csv"),
        ("all.csv.zip", b"a", "unknown file type '.zip', an archive: extract the files in it; use"),
        ("a.ndjson", b"a", "unknown file type '.ndjson': give its name the ending .jsonl; use"),
        ("a.TAB.gz", b"a", "unknown file type '.tab.gz': give its name the ending .tsv.gz; use"),
        (
            "a.jsonl",
            '{"text": "a"}'.encode("utf-16"),
            "a.jsonl:1: not UTF-8: byte 0xff; the file "
            "is UTF-16, as spreadsheets save 'Unicode text'; save it as UTF-8, or convert it: ",
        ),
        ("a.txt", "text".encode("utf-16"), "a.txt:1: not UTF-8: byte 0xff; the file is UTF-16"),
        ("tickets", b"a", "the name has no ending for the type of the file; use .jsonl"),
        ("true", None, "the name has no ending for the type of the file, and no such file"),
        (
            "a.csv",
            b"PK\x03\x04\x14\0",
            "a.csv: the file is a zip archive, as .xlsx, .ods and .docx",
        ),
        ("a.txt", b"%PDF-1.4\n", "a.txt: the file is a PDF; extract its text first"),
        (
            "a.jsonl",
            b"\x1f\x8b\x08\0",
            "the file is compressed by gzip; give its name the ending .gz",
        ),
        ("a.csv", b"PAR1\x15\x04", "the file is a Parquet file; give its name the ending .parquet"),
    ],
)
def test_record_error_names_an_unusable_file(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(JSONLinesDataset(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_endings_of_any_case_name_the_type(tmp_path):
    lines = b'{"text": "a"}\n{"text": "b"}\n'
    contents = {"A.JSONL": lines, "B.Jsonl.GZ": gzip.compress(lines), "C.CSV": b"text\na\nb\n"}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert texts_of(list(JSONLinesDataset(path))) == ["a", "b"]
        assert texts_of([record for _, record in stream_records(path)]) == ["a", "b"]


def test_records_of_a_folder_are_refused(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: Is a directory; name its files.*/\*\.jsonl"):
        JSONLinesDataset(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl" / "notes.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"name its files, such as .*a\.jsonl/\*\.csv"):
        JSONLinesDataset(tmp_path / "a.jsonl")


def test_records_of_an_unreadable_file_are_refused(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod would not stop root
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match="Permission denied"):
        JSONLinesDataset(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "b', "a.jsonl:2: not JSON: Unterminated string starting at"),
        (b'{"text": "a"}\n{"text": "\xc3', "a.jsonl:2: not UTF-8: byte 0xc3"),
    ],
)
def test_last_line_without_line_feed_may_be_truncated(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="; the file may be cut off") as caught:
        list(JSONLinesDataset(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {"text": 'it says "text": "text"'},
        {"text": "a", "meta": {"text": "b"}},
        {"meta": [{"text": 1}, {"text": 2}], "text": "text"},
    ],
)
def test_duplicate_key_check_accepts_names_in_values(tmp_path, record):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    assert JSONLinesDataset(path)[0] == record


def three_files(folder):
    """Records r0 to r8 in three files, one compressed, one with a blank line."""
    rows = [json.dumps({"text": f"r{i}"}) + "\n" for i in range(9)]
    (folder / "a.jsonl").write_text("".join(rows[:3]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(("\n" + "".join(rows[3:7])).encode()))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress("".join(rows[7:]).encode()))
    return [folder / "a.jsonl", folder / "b.jsonl.gz", folder / "c.jsonl.zst"]


def texts_of(result):
    return [record["text"] for record in result]


@pytest.mark.catches("records_come_in_the_order_of_the_file")
@pytest.mark.parametrize("most_open", [1, 64])
def test_records_of_several_files_are_joined(tmp_path, monkeypatch, most_open):
    monkeypatch.setattr(records, "_MAX_OPEN_FILES", most_open)
    paths = three_files(tmp_path)
    data = JSONLinesDataset(str(tmp_path / "*.jsonl*"), cache_dir=tmp_path / "cache")
    assert data.files == paths
    assert data.name == f"{paths[0]} and 2 more files"
    assert texts_of(data) == [f"r{i}" for i in range(9)]
    assert texts_of(data[i] for i in range(-9, 9)) == 2 * [f"r{i}" for i in range(9)]
    assert texts_of(data.read([8, 0, 4, 4, -6, 3])) == ["r8", "r0", "r4", "r4", "r3", "r3"]
    assert data.read(np.array([5]))[0] == {"text": "r5"}
    assert data.read([]) == []
    assert [data.location(i) for i in (0, 3, 6, -1)] == [
        f"{paths[0]}:1", f"{paths[1]}:2", f"{paths[1]}:5", f"{paths[2]}:2",
    ]  # fmt: skip
    assert data.sizes.dtype == np.int64
    assert data.sizes.tolist() == [15] * 9
    assert data.n_bytes == 9 * 15
    assert list(stream_records(paths)) == [(data.location(i), data[i]) for i in range(9)]
    for wrong in (9, -10):
        with pytest.raises(IndexError, match=f"record {wrong} of 9"):
            data.read([0, wrong])


def test_record_error_names_the_compressed_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n\n{"txt": "b"}\n'))
    for read in (lambda: JSONLinesDataset(path, cache_dir=tmp_path / "c")[1],
                 lambda: list(stream_records(path))):  # fmt: skip
        with pytest.raises(
            RecordError, match=r"a\.jsonl\.gz:3: the record has no 'text'"
        ) as caught:
            read()
        assert (caught.value.path, caught.value.line) in ((path, 3), (str(path), 3))


def test_records_and_text_files_are_not_mixed(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    paths = [write_jsonl(tmp_path / "a.jsonl", ["a"]), tmp_path / "a.txt"]
    with pytest.raises(UserError, match=r"a\.txt and .*a\.jsonl: plain text and records"):
        JSONLinesDataset(paths)
    with pytest.raises(UserError, match=r"a \.txt file has no label; use \.jsonl"):
        JSONLinesDataset(
            tmp_path / "a.txt", {"text": schema.check_text, "label": schema.check_label}
        )
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(UserError, match=r"b\.jsonl: the file is empty"):
        JSONLinesDataset(str(tmp_path / "*.jsonl"))


@given(st.text(st.sampled_from("ab\nÄ€😀\r"), min_size=1, max_size=60), st.integers(4, 9))
def test_text_blocks_join_to_the_file(tmp_path_factory, text, piece):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "TEXT_BLOCK_BYTES", piece)
        patch.setattr(index, "MAX_TEXT_BLOCK_BYTES", 12)
        data = JSONLinesDataset(path)
        result = list(data)
        assert "".join(texts_of(result)) == text
        assert [record.get("continues", False) for record in result] == [
            i > 0 for i in range(len(result))
        ]
        assert list(stream_records(path)) == [(data.location(i), data[i]) for i in range(len(data))]


def test_schema_of_functions_checks_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": [[1, 2], [3, 4]], "label": "x"}\n{"input": "a", "label": 1.5}\n')
    data = JSONLinesDataset(path, {"input": schema.check_model_input, "label": schema.check_label})
    assert data[0]["label"] == "x"
    with pytest.raises(RecordError, match=r":2: 'label' must be an integer or a name, not 1\.5"):
        data[1]
    path.write_text('{"input": ["a", "\\ud83d"]}\n')
    with pytest.raises(
        RecordError, match=r"character 0 of 'input' is .*, half of a surrogate pair"
    ):
        JSONLinesDataset(path, {"input": schema.check_model_input})[0]


def numbered(data, queue):
    queue.put([data[i]["text"] for i in (8, 3, 0)])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_records_can_be_read_in_worker_processes(tmp_path, start):
    three_files(tmp_path)
    data = JSONLinesDataset(str(tmp_path / "*.jsonl*"), cache_dir=tmp_path / "cache")
    assert len(pickle.dumps(data)) < 4000, "an index on disk stays there"
    assert texts_of(pickle.loads(pickle.dumps(data))) == texts_of(data)
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    process = context.Process(target=numbered, args=(data, queue))
    process.start()
    assert queue.get(timeout=120) == ["r8", "r3", "r0"]
    process.join()


def test_records_in_worker_processes_notice_a_changed_file(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "b"])
    sent = pickle.dumps(JSONLinesDataset(path))
    write_jsonl(path, ["a", "b", "c"])
    with pytest.raises(UserError, match="changed while it was in use; start again"):
        pickle.loads(sent)[0]


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_records_of_a_file_without_permission(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        JSONLinesDataset(path)


@pytest.mark.catches("stream_numbers_records_instead_of_lines")
def test_standard_input_is_streamed(monkeypatch):
    given = b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}\n{"text": 1}'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    stream = stream_records("-", TEXT_SCHEMA)
    assert next(stream) == ("standard input:1", {"text": "a"})
    assert next(stream) == ("standard input:3", {"text": "b"})
    with pytest.raises(RecordError, match="standard input:4: 'text' must be a string"):
        next(stream)


@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl", "pipe.jsonl.gz"])
def test_pipe_is_streamed(tmp_path, name):
    os.mkfifo(tmp_path / name)
    content = b'{"text": "a"}\n{"text": "b"}\n'
    packed = gzip.compress(content) if name.endswith(".gz") else content
    writer = threading.Thread(target=(tmp_path / name).write_bytes, args=(packed,))
    writer.start()
    assert texts_of(record for _, record in stream_records(tmp_path / name)) == ["a", "b"]
    writer.join()


def test_stream_rejects_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MAX_LINE_BYTES", 20)
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "b" * 20])
    with pytest.raises(RecordError, match=":2: the line has more than 20 bytes; the limit is 20"):
        list(stream_records(path))


class Borrowed:
    """Minimal Hugging Face dataset."""

    def __init__(self, rows):
        self.rows, self.batches = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        assert type(index) is int
        return self.rows[index]

    def __getitems__(self, indices):
        self.batches += 1
        return [self.rows[i] for i in indices]


@pytest.mark.parametrize("kind", [list, Borrowed])
def test_records_in_memory(kind):
    rows = [{"text": "a" * i, "more": "x"} for i in range(2000)]
    source = kind(rows)
    data = as_records(source)
    assert isinstance(data, InMemoryRecords)
    assert (len(data), data.name, data.files, data.is_plain_text) == (2000, "records", [], False)
    assert list(data) == rows
    assert data[-1] == rows[-1]
    assert data.read([3, 1, -1]) == [rows[3], rows[1], rows[-1]]
    assert data.location(-1) == "record 1999"
    assert data.sizes.tolist() == list(range(2000))
    assert data.n_bytes == sum(range(2000))
    if kind is Borrowed:
        assert source.batches == 6, "read in batches"
    with pytest.raises(IndexError, match="record 2000 of 2000"):
        data[2000]
    assert as_records(data) is data
    assert list(pickle.loads(pickle.dumps(as_records(rows)))) == rows


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no data file: the list is empty"),
        ([{"text": "a"}, {"txt": "b"}], "record 1: the record has no 'text' (it has 'txt')"),
        ([{"text": "a"}, "b"], "record 1: expected a dict, found a str"),
        ([{"text": "\ud83d"}], "record 0: character 0 of 'text' is '\\ud83d', half of a surrogate"),
        ({"train": [], "test": []}, "is not a sequence of records; choose one of its parts: train"),
        (iter([]), "has no random access"),
        (7, "records: a int has no random access"),
    ],
)  # fmt: skip
def test_records_in_memory_with_errors_are_named(source, message):
    with pytest.raises(UserError) as caught:
        list(as_records(source))
    assert message in str(caught.value)


@pytest.mark.catches("line_of_a_selected_record_is_its_number")
def test_record_subset_names_original_lines(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "bb", "ccc", "dddd"])
    subset = RecordSubset(JSONLinesDataset(path), np.array([1, 3]))
    assert [record["text"] for record in subset] == ["bb", "dddd"]
    assert (subset[-1]["text"], len(subset), subset.location(1)) == ("dddd", 2, f"{path}:4")
    assert subset.n_bytes == len(b'{"text": "bb"}\n{"text": "dddd"}\n')


def test_as_records_accepts_paths(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    data = as_records([path, str(path)], TEXT_SCHEMA, cache_dir=tmp_path / "cache")
    assert isinstance(data, JSONLinesDataset)
    assert texts_of(data) == ["a", "a"]
    assert as_records(data) is data
