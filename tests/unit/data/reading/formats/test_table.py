"""Dialect and header of text tables, and the messages about them."""

import gzip
import pickle

import pytest

from miniformer.config import UserError
from miniformer.data.reading import schema
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.records import JSONLinesDataset, RecordError
from miniformer.data.reading.streaming import stream_records

LABELED = {"input": schema.check_model_input, "label": schema.check_label}
VALUED = {"input": schema.check_model_input, "value": schema.check_number}


def write(tmp_path, content, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, fields=LABELED, **settings):
    return list(JSONLinesDataset(path, fields, mapping=FieldMapping(**settings)))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("input,label\na b,x\nc,y\n", "a.csv"),
        ("input;label\na b;x\nc;y", "a.csv"),
        ("input|label\r\na b|x\r\n\r\nc|y\r\n", "a.csv"),
        ("input\tlabel\na b\tx\nc\ty\n", "a.csv"),
        ("input\tlabel\na b\tx\nc\ty\n", "a.tsv"),
        (b"\xef\xbb\xbfinput;label\r\na b;x\r\nc;y\r\n", "a.csv"),
        (gzip.compress(b"\ninput,label\na b,x\nc,y\n", mtime=0), "a.csv.gz"),
        ("input , label\na b,x\nc,y\n", "a.csv"),
    ],
)
@pytest.mark.catches("delimiter_is_always_a_comma", "byte_order_mark_is_a_part_of_the_header")
def test_dialects_give_the_same_records(tmp_path, content, name):
    expected = [{"input": "a b", "label": "x"}, {"input": "c", "label": "y"}]
    path = write(tmp_path, content, name)
    assert read(path) == expected
    assert [record for _, record in stream_records(path, LABELED)] == expected


def test_delimiter_is_found_among_commas_in_texts(tmp_path):
    path = write(tmp_path, "input;label\nyes, sir;x\nno, not, now;y\nok;x\n")
    assert read(path)[1] == {"input": "no, not, now", "label": "y"}
    path = write(tmp_path, "a;1\nb;2\n", "b.csv")
    assert read(path, columns="input,label")[1] == {"input": "b", "label": 2}


def test_given_dialect_wins(tmp_path):
    path = write(tmp_path, 'input|label\n"a,b|x\nc"|y\n')
    assert read(path, delimiter="|", quoting="none") == [
        {"input": '"a,b', "label": "x"},
        {"input": 'c"', "label": "y"},
    ]
    path = write(tmp_path, "caf\xe9,x\n".encode("latin-1"))
    assert read(path, columns=["input", "label"], encoding="latin-1")[0]["input"] == "café"


@pytest.mark.catches("columns_leave_out_the_first_row")
def test_file_without_a_header_needs_names(tmp_path):
    path = write(tmp_path, "good film,1,7\nbad film,0,8\n")
    assert read(path, columns="text,label,id", input_field="text") == [
        {"text": "good film", "label": 1, "id": 7, "input": "good film"},
        {"text": "bad film", "label": 0, "id": 8, "input": "bad film"},
    ]


def test_columns_without_a_name_are_numbered(tmp_path):
    """Such as the index that pandas writes."""
    path = write(tmp_path, ",input,label\n0,a,x\n1,b,y\n")
    assert read(path)[1] == {"column 1": 1, "input": "b", "label": "y"}


def test_table_is_pickled_for_workers(tmp_path):
    path = write(tmp_path, "input,label\na,1\nb,2\n")
    data = JSONLinesDataset(path, LABELED, cache_dir=tmp_path / "cache")
    assert list(pickle.loads(pickle.dumps(data))) == list(data) == read(path)
    assert data.read([1])[0]["label"] == 2
    assert data.sizes.tolist() == [4, 4]


MISTAKES = [
    ("text,category\na,x\n", {}, "a.csv:1: the first row has no columns 'input' and 'label'; it "
     "has 'text', 'category' (separated by ','). If it is a header, name the columns: "
     "input_field='text', label_field='category'. If the file has no header, name all columns in "
     "their order, such as columns='input,label'"),
    ("input,label\na,x\n", {"input_field": "txt"}, "a.csv:1: the first row has no column 'txt'; "
     "it has 'input', 'label'"),
    ("input,label,input\na,x,b\n", {}, "a.csv:1: the header has 'input' twice; rename"),
    ("input,label\na,x\n", {"columns": "input,label"}, "a.csv:1: the first row has the names of "
     "columns; leave columns out"),
    ("a,x,1\n", {"columns": "input,label"}, "a.csv:1: the row has 3 cells, columns has 2 names"),
    ('input,label\n"a\nb",x\nc\n', {}, "a.csv:4: the row has 1 cell, the header has 2; add the "
     "missing cells"),
    ("input,label\na,b,x\n", {}, "a.csv:2: the row has 3 cells, the header has 2; put cells that "
     "contain ',' in double quotes (the row: 'a,b,x')"),
    ('input,label\na,x\n"b,y\nc,x\n', {}, "a.csv:3: the quote that opens cell 1 does not close"),
    ('input,label\n"a,x\n"b",y\n', {}, "a.csv:2: text follows the closing quote of cell 1: 'b\""),
    ("input,label\na,x\nb\0c,y\n", {}, "a.csv:3: character 2 of the line is NUL, which no te"),
    ("input,label\na,x\nb,\n", {}, "a.csv:3: 'label' is an empty name; give the class a name"),
    (b"input,label\na,x\n\"b\nc\xe9\",y\n", {}, "a.csv:4: not UTF-8: byte 0xe9; save the file as "
     "UTF-8, or set its encoding, such as encoding='latin-1'"),
    (b"\xff\xfei\0n\0", {}, "a.csv:1: the file is UTF-16"),
    ("input,label\na,x\n".encode("utf-16-le"), {}, "a.csv:1: the file is UTF-16"),
    ("input,label\na,x\n".encode("utf-16-be"), {}, "a.csv:1: the file is UTF-16"),
    (b"input,label\ra,x\rb,y\r", {}, "a.csv:1: lines end in carriage returns alone"),
    ("input,label\n\n", {}, "a.csv: the file is empty"),
    ("\n\n", {}, "a.csv: the file is empty"),
    ("input,label\na,x\n", {"label_field": "label,input"}, "label_field: 'label' is one column"),
    ("a,b,c,label\nx,y,z,1\n", {"input_field": "a,b,c"}, "a.csv:2: 3 columns of texts for "
     "'input'; join them with input_separator=' '"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "settings", "message"), MISTAKES)
@pytest.mark.catches("rows_of_any_width_are_read", "column_twice_in_the_header_is_accepted")
def test_mistakes_are_named_with_line_and_fix(tmp_path, content, settings, message):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, content), **settings)
    assert message in str(caught.value).replace(str(tmp_path) + "/", "")


VALUE_MISTAKES = [
    ("input,value\na,1.5\nb,n/a\nc,2\n", {}, "a.csv:3: 'value' is 'n/a', not a number"),
    ("input,value\na,1.5\nb,\n", {}, "a.csv:3: 'value' is an empty cell; fill it in or remove"),
    ("a,y\nx,1\nz,\"3,5\"\n", {"input_field": "a", "label_field": "y"},
     "a.csv:3: 'value' (column 'y') is '3,5', not a number"),
    ("a,b,value\n1,2,3\n1,two,3\n2,2,3\n4,3,1\n", {"input_field": "a,b"},
     "a.csv:3: 'input' (column 'b') is 'two', not a number; fix the cell"),
    ("input,value\na,1e999\n", {}, "a.csv:2: 'value' must be a finite number, not Infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "settings", "message"), VALUE_MISTAKES)
@pytest.mark.catches("cells_without_a_number_are_zero")
def test_values_that_are_no_numbers_are_named(tmp_path, content, settings, message):
    with pytest.raises(RecordError) as caught:
        read(write(tmp_path, content), VALUED, **settings)
    assert message in str(caught.value).replace(str(tmp_path) + "/", "")


def test_quoted_cell_of_several_rows_of_a_tsv_is_refused(tmp_path):
    """Quotes in a TSV file are often ordinary characters, and then pair up across rows."""
    path = write(tmp_path, 'input\tlabel\n"a\tx\nb"\tx\nc\ty\n', "a.tsv")
    with pytest.raises(RecordError, match=r"a.tsv:2: the quotes of cell 1 contain tabs and line e"):
        read(path)
    assert read(path, quoting="none")[0] == {"input": '"a', "label": "x"}
    assert read(path, quoting="double")[0] == {"input": "a\tx\nb", "label": "x"}


def test_index_of_another_dialect_is_not_reused(tmp_path):
    path, cache = write(tmp_path, 'input,label\n"a\nb",x\n"c",y\n'), tmp_path / "cache"
    for quoting, number in (("double", 2), ("none", 3), ("double", 2)):
        data = JSONLinesDataset(path, {}, mapping=FieldMapping(quoting=quoting), cache_dir=cache)
        assert len(data) == number
