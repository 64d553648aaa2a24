"""Columns of fields: settings, rows of typed values, messages with flags."""

import json
import re

import pytest

from miniformer.config import ConfigError, UserError
from miniformer.data.reading import schema
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.parsing import DataError
from miniformer.data.reading.records import JSONLinesDataset, as_records
from miniformer.data.reading.suggestions import suggest_flags
from miniformer.train_config import TrainConfig

LABELED = {"input": schema.check_model_input, "label": schema.check_label}


def map_row(row, fields=("input", "label"), **settings):
    return FieldMapping(**settings).row_mapper(fields)(row)


def test_fields_of_their_own_names_need_no_mapper():
    assert FieldMapping().row_mapper(LABELED) is None
    assert FieldMapping(input_field="input", text_field="text").row_mapper(LABELED) is None


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"q": "x", "y": 1}, {"input_field": "q", "label_field": "y"}, ("x", 1)),
        ({"a": "x", "b": "y", "label": 1}, {"input_field": "a, b"}, (["x", "y"], 1)),
        ({"a": 1, "b": 2.5, "label": 1}, {"input_field": ["a", "b"]}, ([[1, 2.5]], 1)),
        (
            {"a": "x", "b": 2, "label": 1},
            {"input_field": "a,b", "input_separator": "-"},
            ("x-2", 1),
        ),
        ({"t1": 1, "t2": 2, "label": 1}, {"input_field": "t?"}, ([[1], [2]], 1)),
        ({"s": [1, 2], "label": 1}, {"input_field": "s"}, ([[1], [2]], 1)),
    ],
)
@pytest.mark.catches("columns_replace_the_row")
def test_columns_of_typed_rows_become_fields(row, settings, expected):
    record = map_row(row, **settings)
    assert (record["input"], record["label"]) == expected
    assert {name: record[name] for name in row} == row


@pytest.mark.parametrize(
    ("row", "settings", "problem"),
    [
        ({"text": "x", "label": 1}, {"input_field": "txt"}, "the record has no column 'txt' (it "
         "has 'text', 'label'); did you mean 'text'?"),
        ({"text": "x", "tone": 1}, {"label_field": "tone"}, "no column 'input' (it has 'text', "
         "'tone'); name the columns: --input_field text"),
        ({"text": "x", "label": 1}, {"input_field": "t_*"}, "no column that matches 't_*'"),
        ({"a": "x", "b": None, "label": 1}, {"input_field": "a,b"}, "column 'b' is empty"),
        ({"a1": 1, "b1": 1, "b2": 2, "label": 1}, {"input_field": "a*,b*"}, "the patterns of "
         "'input' match 1 and 2 columns"),
        ({"a": "x", "b": "y", "c": "z", "label": 1}, {"input_field": "a,b,c"}, "3 columns of te"),
    ],
)  # fmt: skip
def test_rows_without_the_columns_are_named(row, settings, problem):
    with pytest.raises(DataError) as caught:
        map_row(row, **settings)
    assert problem in caught.value.problem


def test_records_in_memory_and_lines_use_the_mapping(tmp_path):
    rows = [{"text": "x", "kind": 1}, {"text": "y", "kind": 2}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"text": 1, "text": 2}')
    mapping = FieldMapping(input_field="text", label_field="kind")
    expected = [{**row, "input": row["text"], "label": row["kind"]} for row in rows]
    assert list(as_records(rows, LABELED, mapping=mapping)) == expected
    data = JSONLinesDataset(path, LABELED, mapping=mapping)
    assert data.read([0, 1]) == expected
    with pytest.raises(UserError, match=r"a.jsonl:3: duplicate field 'text'; keep one"):
        data[2]
    hint = r"; add that field, or name the column: input_field='text', label_field='kind'"
    with pytest.raises(UserError, match=hint):
        JSONLinesDataset(path, LABELED)[0]


def test_optional_mapping_accepts_files_with_the_names_of_fields(tmp_path):
    mapping = FieldMapping(input_field="text", label_field="kind", optional=True)
    assert map_row({"input": "x", "kind": 1}, input_field="text", label_field="kind",
                   optional=True) == {"input": "x", "kind": 1, "label": 1}  # fmt: skip
    (tmp_path / "a.csv").write_text("input,label\nx,1\n")
    assert as_records(tmp_path / "a.csv", LABELED, mapping=mapping)[0]["label"] == 1
    (tmp_path / "b.csv").write_text("text\nx\n")
    only_input = {"input": schema.check_model_input}
    assert as_records(tmp_path / "b.csv", only_input, mapping=mapping)[0]["input"] == "x"


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        (LABELED, {"text_field": "x"}, "text_field has no effect: the task reads 'input' and "
         "'label'; set input_field, or leave it out"),
        (["text"], {"label_field": "x"}, "label_field has no effect: the task reads 'text'; set "
         "text_field"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_refused(fields, settings, message):
    with pytest.raises(UserError) as caught:
        FieldMapping(**settings).check_fields(fields)
    assert message in str(caught.value)


def test_columns_of_a_field_are_limited():
    for settings, fields, message in (
        ({"label_field": "a,b"}, ["label"], "label_field: 'label' is one column, not 2"),
        ({"input_field": "a,b"}, ["source"], "need an input_separator"),
        ({"label_field": "a,b"}, ["target"], "'target' is one column, not 2"),
    ):
        with pytest.raises(UserError, match=message):
            FieldMapping(**settings).sources(fields)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delimiter": "ab"}, "delimiter must be one ASCII character, such as ';' or '\\t', not"),
        ({"delimiter": '"'}, "delimiter must be one ASCII character"),
        ({"columns": "a,b,a"}, "columns: 'a' appears twice"),
        ({"columns": "a,,b"}, "columns has an empty name"),
        ({"input_field": ""}, "input_field has an empty name"),
        ({"encoding": "utf-16"}, "encoding must be utf-8, or a one-byte encoding"),
        ({"encoding": "shift-jis"}, "convert the file: iconv"),
        ({"encoding": "nonsense"}, "encoding must be utf-8"),
        ({"quoting": "single"}, "quoting must be one of double, none"),
    ],
)
@pytest.mark.catches("names_of_the_tab_are_refused")
def test_invalid_settings_are_named(settings, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(train_path="a.csv", **settings)
    assert message in str(caught.value)
    for valid in ("\t", "\\t", "tab", ";"):
        assert TrainConfig(train_path="a.csv", delimiter=valid).delimiter == valid
    for valid in ("latin-1", "cp1252", "utf-8", "koi8-r"):
        assert TrainConfig(train_path="a.csv", encoding=valid).encoding == valid


def test_mapping_of_a_config_round_trips():
    config = TrainConfig(train_path="a.csv", input_field=["a", "b"], columns="a,b,c")
    mapping = FieldMapping.from_settings(config)
    assert (mapping.input_field, mapping.columns) == (["a", "b"], "a,b,c")
    assert FieldMapping.from_dict(mapping.to_dict()) == mapping


@pytest.mark.parametrize(
    ("missing", "columns", "flags"),
    [
        (["input", "label"], ["text", "category"], "--input_field text --label_field category"),
        (["input", "label"], ["Sentence", "Label"], "--input_field Sentence --label_field Label"),
        (["input"], ["premise", "hypothesis", "label"], "--input_field premise,hypothesis"),
        (["input"], ["id", "sentence1", "sentence2"], "--input_field sentence1,sentence2"),
        (["input", "label"], ["id", "review_text", "stars", "y"],
         "--input_field review_text --label_field y"),
        (["source", "target"], ["lemma", "form", "tags"], "--input_field lemma --label_field form"),
        (["tokens", "tags"], ["words", "ner_tags"], "--input_field words --label_field ner_tags"),
        (["text"], ["id", "content"], "--text_field content"),
        (["input", "value"], ["smiles", "measured log solubility"],
         "--input_field smiles --label_field 'measured log solubility'"),
        (["input", "label"], ["text", "zzz"], "--input_field text --label_field zzz"),
        (["input", "label"], ["p", "q", "r"], ""),
    ],
)  # fmt: skip
@pytest.mark.catches("suggested_flags_follow_the_order_of_columns")
def test_flags_are_suggested_by_usual_names(missing, columns, flags):
    assert suggest_flags(missing, columns) == flags


@pytest.mark.catches("columns_in_use_are_suggested")
def test_suggested_columns_are_those_that_no_field_has(tmp_path):
    rows = [{"text": "a", "kind": "x"}, {"text": "b"}]
    mapping = FieldMapping(input_field="text", label_field="kind")
    with pytest.raises(
        UserError, match=r"record 1: .* no column 'kind' \(it has 'text'\); name one of"
    ):
        list(as_records(rows, LABELED, mapping=mapping))


@pytest.mark.parametrize(
    ("header", "fields", "message"),
    [
        (
            "Nr;Text;Kategorie;Datum", LABELED,
            "name the columns: input_field='Text', label_field='COLUMN'. If the file has no header",
        ),
        (
            "Nr;Text;Kategorie;Datum", {"text": schema.check_text},
            "text_field='Text'. For another task than language_modeling, set task.",
        ),
    ],
)  # fmt: skip
def test_header_without_the_columns_names_the_flags(tmp_path, header, fields, message):
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n1;a;b;c\n")
    with pytest.raises(UserError, match=re.escape(message)):
        as_records(str(path), fields)
