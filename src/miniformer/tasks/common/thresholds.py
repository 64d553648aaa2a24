"""Decision thresholds of multi-label classification, chosen on validation data."""

from __future__ import annotations

import numpy as np

# With fewer positive records, the best threshold of a label is noise.
MIN_POSITIVES = 5
_GRID = np.arange(1, 100) / 100


def best_thresholds(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Threshold of each label: the geometric mean of its own best one and the common one.

    The best threshold of a label fits its validation records too closely. The mean with
    `best_common_threshold`, in which all labels have a part, gives about the same macro F1 on new
    data and a higher micro F1. Labels with fewer than `MIN_POSITIVES` positive records get the
    common threshold.

    Args:
        probs: float [N, K].
        labels: bool [N, K].

    Returns:
        float [K]; a label is predicted if its probability is at least the threshold.
    """
    common = best_common_threshold(probs, labels)
    thresholds = np.full(probs.shape[1], common)
    for label in np.flatnonzero(labels.sum(0) >= MIN_POSITIVES):
        thresholds[label] = np.sqrt(common * best_threshold(probs[:, label], labels[:, label]))
    return thresholds


def best_threshold(probs: np.ndarray, labels: np.ndarray) -> float:
    """Threshold with the highest F1: halfway between two neighboring probabilities.

    Args:
        probs: float [N].
        labels: bool [N], at least one of them true.
    """
    order = np.argsort(-probs, kind="stable")
    ranked = probs[order].astype(np.float64)
    below = np.append(ranked[1:], -1.0)
    f1 = 2 * np.cumsum(labels[order]) / (np.arange(1, len(ranked) + 1) + labels.sum())
    f1[ranked == below] = -1.0  # no threshold separates equal probabilities
    best = int(np.argmax(f1))
    return float((ranked[best] + max(below[best], 0.0)) / 2)


def best_common_threshold(probs: np.ndarray, labels: np.ndarray) -> float:
    """Threshold of all labels, in hundredths, with the highest F1 averaged over labels.

    Args:
        probs: float [N, K].
        labels: bool [N, K].
    """
    scores = [macro_f1(probs >= threshold, labels) for threshold in _GRID]
    return float(_GRID[int(np.argmax(scores))])


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 averaged over labels; 0 for a label without positives and predictions."""
    return float(f1_along(predictions, labels, axis=0).mean())


def micro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of all decisions together."""
    return float(f1_along(predictions, labels, axis=None))


def samples_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 averaged over records; 1 for a record without labels and predictions."""
    empty = ~(predictions.any(1) | labels.any(1))
    return float((f1_along(predictions, labels, axis=1) + empty).mean())


def f1_along(predictions: np.ndarray, labels: np.ndarray, axis: int | None) -> np.ndarray:
    """F1 along an axis of bool arrays [N, K]; 0 where it is undefined."""
    hits = (predictions & labels).sum(axis)
    total = predictions.sum(axis) + labels.sum(axis)
    return np.asarray(2 * hits / np.maximum(total, 1))
