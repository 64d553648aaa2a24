import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.data.reading.schema import (
    check_label,
    check_number,
    check_text,
    compile_schema,
    features_to_array,
    input_kind,
)
from miniformer.data.reading.schema import check_model_input as check_input

NUMBERS = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6)
MATRICES = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(NUMBERS, min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (check_text, ""), (check_text, "a"), (check_label, 0), (check_label, -3),
        (check_label, "cat"), (check_number, 1), (check_number, 2.5), (check_input, ""),
        (check_input, ["a", ""]), (check_input, [[1, 2.5], [3, 4]]),
        (check_input, [{"x": 1}, {"x": 2}]), (check_input, [{"x": 1, "y": 2}, {"y": 1, "x": 2}]),
    ],
)  # fmt: skip
def test_schema_accepts_valid_records(check, value):
    assert check(value) is None


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (check_text, 7, "must be a string, not an integer"),
        (check_text, None, "must be a string, not null"),
        (check_text, ["a"], "must be a string, not a list"),
        (check_label, True, "must be an integer or a name, not true"),
        (check_label, 1.0, "must be an integer or a name, not 1.0"),
        (check_label, "", "is an empty name"),
        (check_label, " \t", "is an empty name"),
        (check_label, None, "is null; give the class a name or a number, or leave the record out"),
        (check_number, True, "must be a finite number, not true"),
        (check_number, "1", "must be a finite number, not a string"),
        (check_number, float("nan"), "must be a finite number, not NaN"),
        (check_number, float("-inf"), "must be a finite number, not -Infinity"),
        (check_number, 10**400, "must be a finite number, not an integer too large"),
        (check_input, 7, "must be a string, two strings or a list of vectors, not an integer"),
        (check_input, [], "is an empty list"),
        (check_input, ["a"], "must be a string, two strings or vectors, not 1 string"),
        (check_input, ["a", "b", "c"], "must be a string, two strings or vectors, not 3 strings"),
        (check_input, [1, 2], "not a list of an integer"),
        (check_input, ["a", [1]], "not a list of a string"),
        (check_input, [[]], "vector 1 is empty"),
        (check_input, [[1, 2], "ab"], "vector 2 is a string; each must be a list of numbers"),
        (check_input, [[0] * 12, [0] * 12, [0] * 11],
         "vector 3 has 11 numbers, the first has 12; all must have the same length"),
        (check_input, [[1] * 5, [1, 1, 1, 1, float("nan")]], "vector 2 contains NaN at 5"),
        (check_input, [[1, float("inf")]], "vector 1 contains Infinity at 2"),
        (check_input, [[1, True]], "vector 1 contains true at 2"),
        (check_input, [[True, False]], "vector 1 contains true at 1"),
        (check_input, [["1", 2]], "vector 1 contains a string at 1"),
        (check_input, [[1], [None]], "vector 2 contains null at 1"),
        (check_input, [[[1]]], "vector 1 contains a list at 1"),
        (check_input, [[1, 1e39]], "vector 1 contains 1e+39 at 2; the maximum of float32"),
        (check_input, [[10**400]], "vector 1 contains an integer too large"),
        (check_input, [{}], "object 1 is empty"),
        (check_input, [{"x": 1}, {"x": 1}, {"x": 1}, {}], "object 4 is empty"),
        (check_input, [{"x": 1, "y": 2}, {"y": 1}], "object 2 has no 'x', which the first has"),
        (check_input, [{"x": 1}, {"x": 1, "z": 2}], "object 2 has 'z', which the first lacks"),
        (check_input, [{"x": 1}, [1]], "object 2 is a list; each must be an object"),
        (check_input, [{"x": 1}, {"x": float("nan")}], "object 2 contains NaN at 'x'"),
    ],
)  # fmt: skip
def test_schema_names_invalid_fields(check, value, expected):
    assert check(value).startswith(expected) or expected in check(value)


@given(MATRICES)
def test_features_of_any_matrix_become_an_array(rows):
    assert check_input(rows) is None
    assert input_kind(rows) == "features"
    np.testing.assert_array_equal(features_to_array(rows), np.array(rows, dtype=np.float32))
    objects = [{f"k{9 - i}": value for i, value in enumerate(row)} for row in rows]
    assert check_input(objects) is None
    np.testing.assert_array_equal(
        features_to_array(objects), np.array(rows, dtype=np.float32)[:, ::-1]
    )


@given(MATRICES, st.data())
def test_features_with_one_invalid_number_are_rejected(rows, data):
    i = data.draw(st.integers(0, len(rows) - 1))
    k = data.draw(st.integers(0, len(rows[0]) - 1))
    rows[i][k] = data.draw(
        st.sampled_from([None, True, "1", [], {}, float("nan"), float("inf"), 1e39, 10**400])
    )
    assert check_input(rows).startswith(f"vector {i + 1} contains ")
    assert f" at {k + 1};" in check_input(rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_schema_accepts_only_usable_inputs(value):
    for check in (check_text, check_label, check_number, check_input):
        assert check(value) is None or isinstance(check(value), str)
    if check_input(value) is None and input_kind(value) == "features":
        assert np.isfinite(features_to_array(json.loads(json.dumps(value)))).all()


def test_input_kind_of_inputs():
    assert input_kind("a") == "text"
    assert input_kind(["a", "b"]) == "pair"
    assert input_kind([[1.0]]) == input_kind([{"x": 1}]) == "features"


def test_compile_schema_accepts_types():
    check = compile_schema({"n": int, "name": check_label})
    assert check["n"](1) is None
    assert check["n"]("a") == "must be an integer, not a string"
    assert check["name"] is check_label
