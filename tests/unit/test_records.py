import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.records import JSONLinesDataset, RecordError
from tests.kit import write_jsonl


def test_records_are_had_by_index_and_in_order(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\r\n\n  \n{"text": "zw\xc3\xb6lf", "more": 1}\n{"text": ""}')
    data = JSONLinesDataset(path)
    assert len(data) == 3
    wanted = [{"text": "one"}, {"text": "zwölf", "more": 1}, {"text": ""}]
    assert [data[0], data[1], data[2]] == wanted == list(data)
    assert data[-1] == wanted[2]
    with pytest.raises(IndexError, match="record 3 of 3"):
        data[3]


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_comes_back_as_it_was(tmp_path_factory, texts):
    path = write_jsonl(tmp_path_factory.mktemp("records") / "a.jsonl", texts)
    assert [record["text"] for record in JSONLinesDataset(path)] == texts


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx")
    assert JSONLinesDataset(tmp_path / "a.jsonl")[0] == {"text": "x"}
    assert JSONLinesDataset(tmp_path / "a.txt")[0] == {"text": "x"}


def test_a_text_file_is_one_record(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    data = JSONLinesDataset(path)
    assert data.is_plain_text
    assert list(data) == [{"text": "one\n\ntwo\n"}] == [data[0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not JSON"),
        (b'{"txt": "a"}', "the record has no 'text' (it has 'txt'); add that field"),
        (b'{"text": 7}', "'text' must be a string, not an integer"),
        (b'["a"]', "expected a JSON object, found '[\"a\"]'"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff; save the file as UTF-8"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    with pytest.raises(RecordError) as caught:
        list(JSONLinesDataset(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_bad_bytes_in_a_text_file_are_named_by_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\ngood\nb\xffd\n")
    with pytest.raises(RecordError, match=":3: not UTF-8: byte 0xff"):
        list(JSONLinesDataset(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "No such file or directory"),
        ("empty.jsonl", b"", "the file is empty; it needs at least one record"),
        ("blank.jsonl", b"\n \n", "the file is empty"),
        ("empty.txt", b"", "the file is empty"),
        ("table.csv", b"a", "unknown kind of file '.csv'; use .jsonl or .txt"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        JSONLinesDataset(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: Is a directory"):
        JSONLinesDataset(tmp_path / "a.jsonl")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod would not stop root
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match="Permission denied"):
        JSONLinesDataset(path)
