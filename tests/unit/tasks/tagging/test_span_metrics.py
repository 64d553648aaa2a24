"""Metrics of spans against seqeval."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

from miniformer.tasks.tagging.span_metrics import (
    OUTSIDE_BIASES,
    count_spans,
    precision_recall_f1,
    select_outside_bias,
)

TAGS = st.sampled_from(["O", "O", "B-x", "I-x", "B-y", "I-y"])
PAIRS = st.lists(st.lists(st.tuples(TAGS, TAGS), max_size=6), min_size=1, max_size=5)


@pytest.mark.catches("spans_with_another_end_are_correct")
@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=40)
@given(pairs=PAIRS)
def test_span_metrics_match_seqeval(strict, pairs):
    truths = [[true for true, _ in row] for row in pairs]
    predictions = [[predicted for _, predicted in row] for row in pairs]
    counts = count_spans(truths, predictions, "iob2", ["x", "y"], strict=strict)
    assert counts.shape == (len(pairs), 2, 3)
    mode = {"mode": "strict", "scheme": IOB2} if strict else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics that are not defined
        expected = [
            score(truths, predictions, zero_division=0, **mode)
            for score in (precision_score, recall_score, f1_score)
        ]
        has_spans = counts.sum() > 0  # without any, seqeval's report fails
        report = has_spans and classification_report(
            truths, predictions, output_dict=True, zero_division=0, **mode
        )
    np.testing.assert_allclose(precision_recall_f1(counts.sum((0, 1))), expected, atol=1e-12)
    for row, name in enumerate(("x", "y")):
        precision, recall, f1 = precision_recall_f1(counts.sum(0)[row])
        entry = (report or {}).get(name, {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        actual = (precision, recall, f1, counts.sum(0)[row, 2])
        np.testing.assert_allclose(actual, list(entry.values()), atol=1e-12)


def test_spans_of_unknown_types_are_not_counted():
    counts = count_spans([["B-x", "B-z"]], [["B-x", "B-z"]], "iob2", ["x"])
    assert counts.tolist() == [[[1, 1, 1]]]


@pytest.mark.catches("outside_bias_follows_chance")
def test_select_outside_bias_only_for_a_gain_beyond_chance():
    counts = np.zeros((len(OUTSIDE_BIASES), 200, 3), dtype=np.int64)
    counts[..., 2] = 1
    counts[:, :40, :2] = 1  # correct spans of each bias
    assert select_outside_bias(counts) == 0.0
    chance = counts.copy()
    chance[2, 40:42, :2] = 1  # two more, and one that is lost
    chance[2, 0, :2] = 0
    assert select_outside_bias(chance) == 0.0
    certain = counts.copy()
    certain[3, 40:90, :2] = 1
    assert select_outside_bias(certain) == OUTSIDE_BIASES[3]
