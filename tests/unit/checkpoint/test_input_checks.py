"""Inputs and batch sizes that a user passes to a pipeline: what is taken, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest

from miniformer.checkpoint.input_checks import as_inputs, check_batch_size, check_texts
from miniformer.config import InputError, UserError


@pytest.mark.parametrize("given", [np.array([[1.0, 2.0]]), pd.Series(["a", "b"])])
def test_arrays_and_columns_become_lists(given):
    assert as_inputs(given) == given.tolist()
    assert as_inputs("a") == "a"
    assert as_inputs(("a", "b")) == ("a", "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "inputs must be one input or a list of them, not a int"),
        ({"input": "a"}, "not a dict; records go to evaluate"),
    ],
)
def test_other_types_of_inputs_are_refused(given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        as_inputs(given)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "4"])
def test_batch_sizes_are_positive_integers(size):
    assert (check_batch_size(None), check_batch_size(3)) == (None, 3)
    with pytest.raises(UserError, match="batch_size must be a positive integer, not"):
        check_batch_size(size)


def test_all_invalid_texts_are_in_one_error():
    with pytest.raises(InputError) as caught:
        check_texts(["a", "b\ud800", ["c", "\udfff"], [1.0, 2.0]])
    assert caught.value.problems.keys() == {1, 2}
    assert "character 1 is '\\ud800', an unpaired surrogate" in caught.value.problems[1]
