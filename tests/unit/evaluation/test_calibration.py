"""Calibration against torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from miniformer.evaluation.calibration import calibrate
from miniformer.tasks.common.record_results import RecordResults


def results(probs, truths, classes):
    """Results of a classifier with these probabilities, [N, C], and true classes, int [N]."""
    predictions, rows = probs.argmax(1), np.arange(len(probs))
    return RecordResults(
        records=rows,
        predictions=[classes[k] for k in predictions],
        truths=[classes[k] for k in truths],
        losses=-np.log(probs[rows, truths]),
        weights=np.ones(len(probs)),
        correct=predictions == truths,
        scores=probs.max(1),
        classes=classes,
        class_scores=probs,
    )


@pytest.mark.catches("calibration_bins_weigh_the_same")
@pytest.mark.parametrize("seed", range(3))
def test_calibrate_is_that_of_other_libraries(seed):
    rng = np.random.default_rng(seed)
    probs, truths = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200)
    calibration = calibrate(results(probs, truths, ["a", "b", "c"]))
    ece = multiclass_calibration_error(
        torch.from_numpy(probs), torch.from_numpy(truths), 3, n_bins=15, norm="l1"
    )
    assert calibration.ece == pytest.approx(float(ece), rel=1e-5)
    brier = brier_score_loss(truths, probs, labels=[0, 1, 2], scale_by_half=False)
    assert calibration.brier == pytest.approx(brier)
    assert sum(item["records"] for item in calibration.bins) == 200


def test_calibrate_bins_have_confidence_and_accuracy_of_their_records():
    probs = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [0.62, 0.38]])
    calibration = calibrate(results(probs, np.array([0, 1, 0, 1]), ["a", "b"]))
    assert [(item["records"], item["accuracy"]) for item in calibration.bins] == [
        (1, 1.0),
        (1, 0.0),
        (2, 1.0),
    ]
    assert calibration.bins[0]["confidence"] == pytest.approx(0.6)


def test_calibrate_of_results_without_probabilities_is_none():
    nothing = RecordResults(np.arange(1), [None], [None], np.ones(1), np.ones(1))
    assert calibrate(nothing) is None
