"""Class metrics against scikit-learn's report."""

import numpy as np
import pytest
from sklearn.metrics import classification_report, f1_score

from miniformer.evaluation.class_table import class_table
from miniformer.tasks.common.record_results import RecordResults, confusion_matrix


@pytest.mark.catches("precision_and_recall_are_exchanged")
@pytest.mark.parametrize("seed", range(4))
def test_class_table_is_the_report_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truths, predictions = rng.integers(0, 4, 30), rng.integers(0, 3, 30)  # d is never predicted
    classes = ["a", "b", "c", "d"]
    results = RecordResults(
        np.arange(30), [None] * 30, [None] * 30, np.ones(30), np.ones(30),
        classes=classes, confusion=confusion_matrix(truths, predictions, 4),
    )  # fmt: skip
    rows, averages = class_table(results)
    report = classification_report(
        truths,
        predictions,
        labels=range(4),
        target_names=classes,
        output_dict=True,
        zero_division=0,
    )
    assert [row.name for row in rows] == classes
    for row in [*rows, *averages]:
        assert {
            "precision": row.precision, "recall": row.recall, "f1-score": row.f1,
            "support": row.support,
        } == pytest.approx(report[row.name])  # fmt: skip
    assert [row.predicted for row in rows] == np.bincount(predictions, minlength=4).tolist()


@pytest.mark.catches("absent_classes_lower_the_macro_average")
def test_averages_leave_out_classes_that_do_not_occur():
    """Without `labels`, the report of scikit-learn has only classes that occur."""
    truths, predictions = np.array([0, 0, 2, 2, 2]), np.array([0, 2, 2, 2, 0])
    results = RecordResults(
        np.arange(5), [None] * 5, [None] * 5, np.ones(5), np.ones(5),
        classes=["a", "b", "c"], confusion=confusion_matrix(truths, predictions, 3),
    )  # fmt: skip
    rows, averages = class_table(results)
    report = classification_report(truths, predictions, output_dict=True)
    assert [row.name for row in rows] == ["a", "b", "c"]
    for row in averages:
        expected = report[row.name]
        assert [row.precision, row.recall, row.f1] == pytest.approx(
            [expected["precision"], expected["recall"], expected["f1-score"]]
        )
    assert averages[0].f1 == pytest.approx(f1_score(truths, predictions, average="macro"))


def test_class_table_of_results_without_classes_is_empty():
    results = RecordResults(np.arange(1), [1.0], [2.0], np.ones(1), np.ones(1))
    assert class_table(results) == ([], [])
