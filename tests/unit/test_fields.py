import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.data.fields import checks_of, input_kind, label, model_input, number, text, to_array

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
        (text, ""), (text, "a"), (label, 0), (label, -3), (label, "cat"), (number, 1),
        (number, 2.5), (model_input, ""), (model_input, ["a", ""]),
        (model_input, [[1, 2.5], [3, 4]]),
        (model_input, [{"x": 1}, {"x": 2}]), (model_input, [{"x": 1, "y": 2}, {"y": 1, "x": 2}]),
    ],
)  # fmt: skip
def test_what_is_right_passes(check, value):
    assert check(value) is None


@pytest.mark.parametrize(
    ("check", "value", "wanted"),
    [
        (text, 7, "must be a string, not an integer"),
        (text, None, "must be a string, not null"),
        (text, ["a"], "must be a string, not a list"),
        (label, True, "must be an integer or a name, not true"),
        (label, 1.0, "must be an integer or a name, not a number"),
        (label, "", "is an empty name"),
        (number, True, "must be a finite number, not true"),
        (number, "1", "must be a finite number, not a string"),
        (number, float("nan"), "must be a finite number, not NaN"),
        (number, float("-inf"), "must be a finite number, not -Infinity"),
        (number, 10**400, "must be a finite number, not an integer too large"),
        (model_input, 7, "must be a string, two strings or a list of vectors, not an integer"),
        (model_input, [], "is an empty list"),
        (model_input, ["a"], "must be a string, two strings or vectors, not 1 string"),
        (model_input, ["a", "b", "c"], "must be a string, two strings or vectors, not 3 strings"),
        (model_input, [1, 2], "not a list of an integer"),
        (model_input, ["a", [1]], "not a list of a string"),
        (model_input, [[]], "vector 1 is empty"),
        (model_input, [[1, 2], "ab"], "vector 2 is a string; each must be a list of numbers"),
        (model_input, [[0] * 12, [0] * 12, [0] * 11],
         "vector 3 has 11 numbers, the first has 12; all must be as long"),
        (model_input, [[1] * 5, [1, 1, 1, 1, float("nan")]], "vector 2 holds NaN at 5; each must"),
        (model_input, [[1, float("inf")]], "vector 1 holds Infinity at 2"),
        (model_input, [[1, True]], "vector 1 holds true at 2"),
        (model_input, [[True, False]], "vector 1 holds true at 1"),
        (model_input, [["1", 2]], "vector 1 holds a string at 1"),
        (model_input, [[1], [None]], "vector 2 holds null at 1"),
        (model_input, [[[1]]], "vector 1 holds a list at 1"),
        (model_input, [[1, 1e39]], "vector 1 holds 1e+39 at 2; float32 ends at 3.4e+38"),
        (model_input, [[10**400]], "vector 1 holds an integer too large"),
        (model_input, [{}], "object 1 is empty"),
        (model_input, [{"x": 1}, {"x": 1}, {"x": 1}, {}], "object 4 is empty"),
        (model_input, [{"x": 1, "y": 2}, {"y": 1}], "object 2 has no 'x', which the first has"),
        (model_input, [{"x": 1}, {"x": 1, "z": 2}], "object 2 has 'z', which the first has not"),
        (model_input, [{"x": 1}, [1]], "object 2 is a list; each must be an object"),
        (model_input, [{"x": 1}, {"x": float("nan")}], "object 2 holds NaN at 'x'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(check, value, wanted):
    assert check(value).startswith(wanted) or wanted in check(value)


@given(MATRICES)
def test_any_matrix_of_numbers_passes_and_becomes_an_array(rows):
    assert model_input(rows) is None
    assert input_kind(rows) == "features"
    np.testing.assert_array_equal(to_array(rows), np.array(rows, dtype=np.float32))
    objects = [{f"k{9 - i}": value for i, value in enumerate(row)} for row in rows]
    assert model_input(objects) is None
    np.testing.assert_array_equal(to_array(objects), np.array(rows, dtype=np.float32)[:, ::-1])


@given(MATRICES, st.data())
def test_one_bad_number_in_any_matrix_is_found(rows, data):
    i = data.draw(st.integers(0, len(rows) - 1))
    k = data.draw(st.integers(0, len(rows[0]) - 1))
    rows[i][k] = data.draw(
        st.sampled_from([None, True, "1", [], {}, float("nan"), float("inf"), 1e39, 10**400])
    )
    assert model_input(rows).startswith(f"vector {i + 1} holds ")
    assert f" at {k + 1};" in model_input(rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_whatever_passes_can_be_used(value):
    for check in (text, label, number, model_input):
        assert check(value) is None or isinstance(check(value), str)
    if model_input(value) is None and input_kind(value) == "features":
        assert np.isfinite(to_array(json.loads(json.dumps(value)))).all()


def test_kinds_of_input():
    assert input_kind("a") == "text"
    assert input_kind(["a", "b"]) == "pair"
    assert input_kind([[1.0]]) == input_kind([{"x": 1}]) == "features"


def test_a_plain_type_is_a_check():
    check = checks_of({"n": int, "name": label})
    assert check["n"](1) is None
    assert check["n"]("a") == "must be an integer, not a string"
    assert check["name"] is label
