"""Precision, recall and F1 of spans, by the definition of seqeval: equal type, start and end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miniformer.tasks.tagging.schemes import find_spans

OUTSIDE_BIASES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # nats
_NUM_RESAMPLES = 200
_MIN_STANDARD_ERRORS = 2.0


def count_spans(
    truths: Sequence[Sequence[str]],
    predictions: Sequence[Sequence[str]],
    scheme: str,
    types: Sequence[str],
    *,
    strict: bool = False,
) -> np.ndarray:
    """Correct, predicted and true spans of each sequence and type, int64 [N, types, 3].

    Args:
        truths, predictions: tags of N sequences.
        scheme: of the tags.
        types: types of spans; those of other types are not counted.
        strict: see `find_spans`.
    """
    counts = np.zeros((len(truths), len(types), 3), dtype=np.int64)
    rows = {name: row for row, name in enumerate(types)}
    for index, pair in enumerate(zip(truths, predictions, strict=True)):
        true, predicted = (set(find_spans(tags, scheme, strict=strict)) for tags in pair)
        for column, spans in enumerate((true & predicted, predicted, true)):
            for span in spans:
                if span.type in rows:
                    counts[index, rows[span.type], column] += 1
    return counts


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, float64 [...]; 0 where they are not defined.

    Args:
        counts: correct, predicted and true spans, int [..., 3].
    """
    correct, predicted, true = np.moveaxis(counts.astype(np.float64), -1, 0)
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(true, 1)
    return precision, recall, 2 * correct / np.maximum(predicted + true, 1)


def select_outside_bias(counts: np.ndarray) -> float:
    """Item of `OUTSIDE_BIASES` with the highest F1; 0 if it is not above that of 0 for certain.

    It is above if the gain in F1 is at least two standard errors, of resamples of the sequences.

    Args:
        counts: correct, predicted and true spans of each sequence, int [biases, N, 3].
    """
    f1 = precision_recall_f1(counts.sum(1))[2]
    best = int(f1.argmax())
    resamples = np.random.default_rng(0).multinomial(
        counts.shape[1], np.full(counts.shape[1], 1 / counts.shape[1]), _NUM_RESAMPLES
    )
    resampled = [precision_recall_f1(resamples @ counts[row])[2] for row in (0, best)]
    error = float((resampled[1] - resampled[0]).std())
    certain = f1[best] - f1[0] > _MIN_STANDARD_ERRORS * error
    return OUTSIDE_BIASES[best] if certain else 0.0
