"""Kinds of columns of text tables, and the values of cells."""

import io
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.data.reading import cells
from miniformer.data.reading.cells import CellMapper, infer_kinds, parse_list, parse_number
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.parsing import DataError


def convert(rows, fields, **settings):
    """Records of rows of cells, and the mapping with the kinds of columns."""
    mapping = FieldMapping(**settings)
    sources = mapping.sources(fields)
    kinds, separator = infer_kinds(rows, sources)
    mapping = FieldMapping(**settings, kinds=kinds, label_separator=separator)
    mapper = CellMapper(sources, mapping)
    return [mapper(row) for row in rows], mapping


def column(values, name="x"):
    return [{name: value} for value in values]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "0", ""], "integer"),
        (["1", "2.5", "-3e-2", ".5", "+4."], "number"),
        (["007", "12"], "number"),
        (["1", "two"], "text"),
        (["1_000", "2"], "text"),
        (["nan", "1"], "text"),
        (["[1, 2]", "[]"], "list"),
        (["[1, 2]", "3"], "text"),
        (["1" * 400, "1"], "number"),
    ],
)
@pytest.mark.catches("column_has_the_kind_of_its_first_cell")
def test_kind_of_a_column_fits_all_cells(values, kind):
    assert infer_kinds(column(values), {})[0] == {"x": kind}


@given(st.lists(st.integers(-(10**20), 10**20) | st.floats(allow_nan=False), min_size=1))
def test_numbers_round_trip(values):
    """Integers stay integers beside each other only; values are those that Python prints."""
    parsed, _ = convert(column(map(repr, values)), [])
    if not any(value in (float("inf"), -float("inf")) for value in values):
        assert [row["x"] for row in parsed] == values
        assert [type(row["x"]) for row in parsed] == [type(value) for value in values]
    assert all(parse_number(repr(value)) == value for value in values if abs(value) < 1e300)


@given(st.lists(st.text(st.sampled_from("ab 1"), min_size=1, max_size=3), min_size=1))
def test_columns_have_the_types_of_pandas(values):
    """Apart from leading zeros and blanks, which stay."""
    values = [value.strip().lstrip("0") or "a" for value in values]
    file = io.StringIO("x\n" + "".join(f"{value}\n" for value in values))
    expected = pd.read_csv(file, keep_default_na=False)["x"].tolist()
    assert [row["x"] for row in convert(column(values), [])[0]] == expected


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["1", "10", "2"], [1, 10, 2]),
        (["1", "10", "x"], ["1", "10", "x"]),
        (["01", "02"], ["01", "02"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),
        (["True", "False"], ["True", "False"]),
        ([" a", "b "], [" a", "b "]),
    ],
)
@pytest.mark.catches("labels_are_always_names")
def test_labels_are_integers_if_all_are(values, labels):
    records, _ = convert(column(values, "label"), ["label"])
    assert [record["label"] for record in records] == labels


def test_later_files_are_read_as_the_training_data():
    _, mapping = convert(column(["1", "2", "x"], "label"), ["label"])
    later = CellMapper(mapping.sources(["label"]), mapping)
    assert later({"label": "2"}) == {"label": "2"}
    _, mapping = convert(column(["1", "2"], "label"), ["label"])
    later = CellMapper(mapping.sources(["label"]), mapping)
    with pytest.raises(DataError, match="'label' is 'x', not an integer, as the labels of the t"):
        later({"label": "x"})
    assert CellMapper(mapping.sources([]), mapping)({"label": "x"}) == {"label": "x"}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["joy|awe", "joy", "", "awe | joy"], [["joy", "awe"], ["joy"], [], ["awe", "joy"]]),
        (["a,b;c", "a,b"], [["a,b", "c"], ["a,b"]]),
        (["3,10", "27"], [[3, 10], [27]]),
        (["3,x", "27"], [["3", "x"], ["27"]]),
        (["3;4", "x"], [["3", "4"], ["x"]]),
        (['["a", "b"]', "[]"], [["a", "b"], []]),
        (["['a', 'b']", "['c']"], [["a", "b"], ["c"]]),
        (["a", "b"], [["a"], ["b"]]),
        (["1", "2"], [[1], [2]]),
    ],
)
@pytest.mark.catches("labels_are_separated_by_commas_alone")
def test_several_labels_in_a_cell(values, labels):
    records, _ = convert(column(values, "labels"), ["labels"])
    assert [record["labels"] for record in records] == labels


def test_columns_of_indicators_are_labels():
    rows = [{"text": "x", "toxic": "1", "rude": "0"}, {"text": "y", "toxic": "1", "rude": "1"}]
    names = {"input_field": "text", "label_field": "toxic,rude"}
    records, _ = convert(rows, ["input", "labels"], **names)
    assert [record["labels"] for record in records] == [["toxic"], ["toxic", "rude"]]
    with pytest.raises(DataError, match="column 'rude' is 2; several columns of labels hold 1"):
        convert([*rows, {"text": "z", "toxic": "0", "rude": "2"}], ["input", "labels"], **names)


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"text": "12"}, {"input_field": "text"}, "12"),
        ({"a": "x", "b": "y"}, {"input_field": "a,b"}, ["x", "y"]),
        ({"a": "x", "b": "y"}, {"input_field": "b,a", "input_separator": " | "}, "y | x"),
        ({"a": "1", "b": "2.5"}, {"input_field": ["a", "b"]}, [[1, 2.5]]),
        ({"t1": "1", "t2": "2", "t3": "3"}, {"input_field": "t*"}, [[1], [2], [3]]),
        ({"x1": "1", "x2": "2", "y1": "3", "y2": "4"}, {"input_field": "x?,y?"}, [[1, 3], [2, 4]]),
        ({"input": "[[1, 2.5], [3, 4]]"}, {}, [[1, 2.5], [3, 4]]),
        ({"input": "[1, 2.5, 3]"}, {}, [[1], [2.5], [3]]),
        ({"input": "['a', 'b']"}, {}, ["a", "b"]),
        ({"a": "x", "b": "12"}, {"input_field": "a,b"}, ["x", "12"]),
    ],
)
@pytest.mark.catches("two_columns_of_texts_are_joined", "patterns_of_columns_are_one_vector")
def test_inputs_of_one_and_of_several_columns(row, settings, expected):
    assert convert([row], ["input"], **settings)[0][0]["input"] == expected


def test_texts_stay_as_they_are():
    rows = [{"source": "007", "target": "12", "id": "5", "text": ""}]
    (record,), _ = convert(rows, ["source", "target", "text"])
    assert record == {"source": "007", "target": "12", "id": 5, "text": ""}
    (record,), _ = convert(rows, ["source"], input_field="source,target", input_separator=" ")
    assert record["source"] == "007 12"


def test_values_are_numbers_or_lists_of_them():
    rows = [{"x": "1", "y": "2.5", "value": "[1, 2]"}]
    assert convert(rows, ["value"])[0][0]["value"] == [1, 2]
    assert convert(rows, ["value"], label_field="y")[0][0]["value"] == 2.5
    assert convert(rows, ["value"], label_field="x,y")[0][0]["value"] == [1, 2.5]


def test_tokens_and_tags_are_lists_or_separated_by_spaces():
    rows = [{"tokens": "New  York", "tags": "B I"}, {"tokens": "x", "tags": "O"}]
    assert convert(rows, ["tokens", "tags"])[0][0] == {
        "tokens": ["New", "York"],
        "tags": ["B", "I"],
    }
    rows = [{"tokens": '["New York"]', "tags": "['B']"}]
    assert convert(rows, ["tokens", "tags"])[0][0] == {"tokens": ["New York"], "tags": ["B"]}


@given(st.recursive(st.text() | st.integers(), lambda items: st.lists(items), max_leaves=5))
def test_lists_of_json_and_of_python_are_parsed(value):
    if isinstance(value, list):
        assert parse_list(json.dumps(value)) == parse_list(repr(value)) == value


@pytest.mark.parametrize("text", ["[", "[1 2]", "{}", "[open('x')]", "[" * 9999, "1"])
def test_other_text_is_no_list(text):
    with pytest.raises(ValueError, match=r".*"):
        parse_list(text)


def test_cells_that_do_not_fit_their_kind():
    _, mapping = convert([{"id": "1", "items": "[1]"}], [])
    later = CellMapper({}, mapping)
    assert later({"id": "x", "items": "[a"}) == {"id": "x", "items": "[a"}
    assert later({"id": "", "items": ""}) == {"id": None, "items": None}
    assert cells.SEPARATORS == ("|", ";", ",")


@pytest.mark.parametrize(
    ("cell", "fix"),
    [
        ("2024-04-11", "write the date as a number, such as of days"),
        ("11.4.2024", "write the date as a number, such as of days"),
        ("-0,5", "write a decimal point: -0.5"),
        ("1,234", "leave out signs of units and of thousands"),
        ("$3,000.00", "leave out signs of units and of thousands"),
        ("two", "fix the cell"),
    ],
)
@pytest.mark.catches("numbers_have_no_fix")
def test_cell_without_a_number_has_a_fix(cell, fix):
    mapper = CellMapper({"value": ["price"]}, FieldMapping())
    with pytest.raises(DataError) as caught:
        mapper({"price": cell})
    assert caught.value.problem == f"'value' (column 'price') is {cell!r}, not a number; {fix}"
