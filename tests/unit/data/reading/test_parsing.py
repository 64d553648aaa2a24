"""Line ends and byte-order marks in the indexed and the streaming reader."""

import json
import os

import pytest

from miniformer.data.reading.records import JSONLinesDataset, RecordError
from miniformer.data.reading.streaming import stream_records

TEXTS = ["one", "two \u2028 parts", "three\x0bfour", "\ufeffmarked"]
LINES = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in TEXTS]
MARK = b"\xef\xbb\xbf"


def indexed(path):
    return [record["text"] for record in JSONLinesDataset(path)]


def streamed(path):
    return [record["text"] for _, record in stream_records(path)]


def piped(path):
    pipe = path.with_suffix("")
    os.mkfifo(pipe)
    writer = os.fork()
    if not writer:
        try:
            pipe.write_bytes(path.read_bytes())
        finally:
            os._exit(0)
    try:
        return [record["text"] for _, record in stream_records(pipe)]
    finally:
        os.waitpid(writer, 0)


READERS = pytest.mark.parametrize("read", [indexed, streamed, piped])


@READERS
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\r\n", b"\n \t\r\n\n"])
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_at_line_feeds(tmp_path, read, end, mark, last):
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + end.join(LINES) + (end if last else b""))
    assert read(path) == TEXTS


@READERS
@pytest.mark.catches("marks_within_files_are_kept")
def test_byte_order_marks_of_joined_files_are_skipped(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(MARK + line + b"\n" for line in LINES))
    assert read(path) == TEXTS


@READERS
@pytest.mark.parametrize("end", [b"\r", b"\r\r", b" \r "])
@pytest.mark.catches("carriage_returns_are_bad_json")
def test_carriage_returns_alone_are_refused_with_a_fix(tmp_path, read, end):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES[0] + b"\n" + end.join(LINES))
    with pytest.raises(RecordError, match=r":2: lines end in carriage returns alone.*; convert"):
        read(path)


@READERS
def test_two_objects_on_a_line_are_no_carriage_return_error(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES[0] + b" " + LINES[1] + b"\r\n")
    with pytest.raises(RecordError, match=":1: not JSON: Extra data at column 17"):
        read(path)


@READERS
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_encoding_other_than_utf8_is_named(tmp_path, read, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"text": "\u00e9"}, ensure_ascii=False).encode(encoding))
    with pytest.raises(RecordError, match=r":1: not (UTF-8: byte 0x|JSON: )"):
        read(path)


@pytest.mark.parametrize("read", [indexed, streamed])
@pytest.mark.catches("nul_is_a_character_of_texts")
def test_nul_in_a_file_of_any_type_is_named(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_bytes("one\ntwo\nthr\0e\u00e9\n\0\n".encode())
    with pytest.raises(RecordError, match=r"a\.txt:3: character 4 of the line is NUL, which no "):
        read(path)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "a\0"}\n')
    with pytest.raises(RecordError, match=r"a\.jsonl:2: .*character"):
        read(path)
