"""Choice of a threshold by learn-then-test (Angelopoulos et al. 2021).

A record loses if the last layer has its class right and the exit has it wrong. For a threshold, the
number of losses among n independent records is binomial. The hypothesis that the share of losses is
above the limit is rejected if so few losses have a probability of at most 1 - confidence under the
limit. Thresholds are tested in a fixed order, from the strictest, until one is not rejected. So the
probability that a threshold above the limit is chosen is at most 1 - confidence, for any dependence
between thresholds (fixed-sequence testing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Fixed before any data is seen: 0.9999 to 0.29.
THRESHOLDS = tuple(1 - 10 ** (-step / 20) for step in range(80, 2, -1))


def binomial_p_value(num_losses: int, num_records: int, limit: float) -> float:
    """Probability of at most `num_losses` among `num_records` if each has the probability `limit`.

    0 < `limit` < 1.
    """
    logs = [
        math.lgamma(num_records + 1)
        - math.lgamma(k + 1)
        - math.lgamma(num_records - k + 1)
        + k * math.log(limit)
        + (num_records - k) * math.log1p(-limit)
        for k in range(num_losses + 1)
    ]
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def min_records(limit: float, confidence: float) -> int:
    """Number of records of which none may lose for any threshold to be accepted."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-limit) - 1e-9)


def choose_threshold(
    losses: Sequence[int], num_records: int, limit: float, confidence: float
) -> int:
    """Index of the loosest threshold that is accepted; -1: none is.

    Args:
        losses: number of losses of each threshold, from the strictest.
        num_records: number of records.
        limit: largest share of losses.
        confidence: probability with which the share of the chosen one is at most `limit`.
    """
    chosen = -1
    for index, count in enumerate(losses):
        if binomial_p_value(count, num_records, limit) > 1 - confidence:
            break
        chosen = index
    return chosen


def exit_layers(confidences: np.ndarray, threshold: float) -> np.ndarray:
    """Number of layers that each record uses, int [N]; confidences: of all exits, [layers, N]."""
    confident = confidences >= threshold
    confident[-1] = True
    layers: np.ndarray = confident.argmax(0) + 1
    return layers


def count_losses(
    confidences: np.ndarray, is_right: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> list[int]:
    """Number of losses of each threshold; confidences and is_right: of all exits, [layers, N]."""
    records = np.arange(confidences.shape[1])
    return [
        int((is_right[-1] & ~is_right[exit_layers(confidences, value) - 1, records]).sum())
        for value in thresholds
    ]
