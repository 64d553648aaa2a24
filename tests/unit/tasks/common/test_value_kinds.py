"""Values of records: which are refused, and their numbers in both directions."""

import pytest

from miniformer.tasks.common.value_kinds import ValueKind

ONE, LIST, OBJECT = ValueKind(None, None), ValueKind(2, None), ValueKind(2, ["b", "a"])


@pytest.mark.catches("outputs_are_in_the_order_of_the_record")
@pytest.mark.parametrize(
    ("kind", "value"), [(ONE, 1.5), (LIST, [1.5, -2.0]), (OBJECT, {"a": -2.0, "b": 1.5})]
)
def test_numbers_of_a_value_give_it_back(kind, value):
    numbers = kind.to_numbers(value)
    assert numbers.tolist() == [1.5, -2.0][: len(numbers)]
    assert kind.from_numbers(numbers.tolist()) == value
    assert kind.find_problem(value, is_known=True) is None
    assert ONE.find_problem(value, is_known=False) is None  # the first value decides


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        (ONE, "1", "must be a finite number"),
        (ONE, [1.0], "is a list of 1, where others are one number"),
        (LIST, 1.0, "is one number, where others are lists of 2 (num_values)"),
        (LIST, [1.0], "is a list of 1, where others are lists of 2 (num_values)"),
        (LIST, [], "is empty; it needs at least one number"),
        (LIST, [1.0, None], "has 2, which"),
        (LIST, {"b": 1.0, "a": 2.0}, "has the keys 'b', 'a', where others are lists of 2"),
        (OBJECT, {"b": 1.0, "c": 2.0}, "where others are objects with the keys 'b', 'a' (value"),
    ],
)
def test_values_of_another_kind_are_refused(kind, value, problem):
    assert problem in kind.find_problem(value, is_known=True)
