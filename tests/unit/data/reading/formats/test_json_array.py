"""Arrays of objects in .json files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.reading.records import JSONLinesDataset

VALUES = st.recursive(
    st.text(max_size=4) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=2), VALUES, max_size=3), min_size=1, max_size=4),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
@pytest.mark.catches("offsets_of_an_array_are_characters", "json_files_are_lines")
def test_objects_of_an_array_are_records(tmp_path_factory, objects, indent, ascii_only):
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii_only)
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" * ascii_only + text.encode() + b"\n")
    data = JSONLinesDataset(path, {})
    assert list(data) == [data[i] for i in range(len(data))] == objects
    assert data.n_bytes == data.sizes.sum()


def test_lines_of_objects_are_read_too(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    data = JSONLinesDataset(tmp_path / "a.json")
    assert [record["text"] for record in data] == ["a", "b"]
    assert data.location(1).endswith("a.json:3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"text": "a"},\n{"text": 1}\n]', "a.json:3: 'text' must be a string, not an integer"),
        ('[\n{"text": "a"}\n{"text": "b"}]', "a.json:2: not JSON: Expecting ',' or ']' at column"),
        ('[{"text": "a"},\n{"text": "b"},\n]', "a.json:3: not JSON: Expecting value at column 1"),
        ('[{"text": "a"},\n{"text" "b"}]', "a.json:2: not JSON: Expecting ':' delimiter"),
        ('[{"text": "a"}', "not JSON: Expecting ',' or ']'"),
        ('[{"text": "a"}]\n[]', "a.json:2: text follows the array"),
        ("[1]", "a.json:1: expected a JSON object, found '1'"),
        ("[]", "the file is empty"),
        ('{"data": [{"text": "a"}]}', "a.json:1: the file is one object with 'data'"),
        ('{\n"text": "a"}', "a.json:2: not JSON: Expecting property name"),
        ("[" * 100_000, "lists are nested too deeply"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError) as caught:
        list(JSONLinesDataset(tmp_path / "a.json"))
    assert message in str(caught.value)
