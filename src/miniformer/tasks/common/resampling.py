"""Metrics of many resamples of records at once, from statistics of each record.

A resample is a row of `counts`, int [R, N]: the number of times that it contains each record. A
bootstrap draws N records with replacement, so that its rows sum to N. A group of records is a row
of 0 and 1. Most metrics are functions of sums over records; `sum_records` computes these sums for
all resamples in one matrix product.

Letters: R resamples, N records, C classes.
"""

from __future__ import annotations

import numpy as np


def sum_records(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums over the records of each resample.

    Args:
        counts: int [R, N].
        values: statistics of each record, [N] or [N, K].

    Returns:
        float64 [R] or [R, K].
    """
    sums: np.ndarray = np.matmul(counts.astype(np.float64), np.asarray(values, np.float64))
    return sums


def divide(numerator: np.ndarray, denominator: np.ndarray, default: float = np.nan) -> np.ndarray:
    """Quotients; `default` where the denominator is 0."""
    filled = np.full(np.broadcast(numerator, denominator).shape, default, np.float64)
    np.divide(numerator, denominator, out=filled, where=np.asarray(denominator) != 0)
    return filled


def weighted_mean(counts: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the values of records, [N], by their weights, [N]; float64 [R]."""
    return divide(sum_records(counts, values * weights), sum_records(counts, weights))


def sum_confusions(
    counts: np.ndarray, truths: np.ndarray, predictions: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, predicted items and true items of each class; float64 [R, C] each.

    Args:
        counts: int [R, N].
        truths, predictions: class index of each record, int [N].
        num_classes: C.
    """
    is_true, is_predicted = (
        np.eye(num_classes)[classes.astype(np.int64)] for classes in (truths, predictions)
    )
    return (
        sum_records(counts, is_true * is_predicted),
        sum_records(counts, is_predicted),
        sum_records(counts, is_true),
    )


def f1_scores(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 of true positives, predicted and true items; 0 where all are 0."""
    return divide(2 * hits, predicted + true, default=0.0)


def macro_f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur in truths or predictions; float64 [R].

    Args:
        hits, predicted, true: see `sum_confusions`.
    """
    occurs = predicted + true > 0
    return divide(f1_scores(hits, predicted, true).sum(-1), occurs.sum(-1), default=0.0)


def matthews_correlation(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient for C classes (Gorodkin 2004); float64 [R].

    It is not defined if all predictions or all truths are of one class. Of two classes it is then
    the limit of Chicco & Jurman (2020), as in torchmetrics, otherwise 0.

    Args:
        hits, predicted, true: see `sum_confusions`.
    """
    total, hit = true.sum(-1), hits.sum(-1)
    covariance = hit * total - (predicted * true).sum(-1)
    variances = (total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1))
    value = divide(covariance, np.sqrt(variances), default=0.0)
    if true.shape[-1] == 2:
        miss = total - hit
        limit = divide(hit - miss, np.sqrt(hit * miss * total), default=0.0)
        limit = np.where(miss == 0, 1.0, np.where(hit == 0, -1.0, limit))
        value = np.where(variances == 0, limit, value)
    return value


def pearson(counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation in each resample; 0 with constant values; float64 [R].

    Args:
        counts: int [R, N].
        first, second: values of each record, [N], or of each record and resample, [R, N].
    """
    weights = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    x, y = (v - (weights * v).sum(-1, keepdims=True) for v in (first, second))  # [R, N]
    covariance, x_variance, y_variance = (
        (weights * product).sum(-1) for product in (x * y, x * x, y * y)
    )
    # A smaller variance is the rounding error of constant values.
    scales = [np.abs(v).max(initial=0.0) ** 2 * 1e-24 for v in (first, second)]
    varies = (x_variance > scales[0]) & (y_variance > scales[1])
    return np.where(varies, divide(covariance, np.sqrt(x_variance * y_variance), 0.0), 0.0)


def spearman(counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation in each resample; ties have their mean rank; float64 [R]."""
    return pearson(counts, resampled_ranks(counts, first), resampled_ranks(counts, second))


def resampled_ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean rank of each record's value among the values of each resample, float64 [R, N]."""
    distinct, groups = np.unique(values, return_inverse=True)
    sizes = np.zeros((len(distinct), len(counts)))
    np.add.at(sizes, groups, counts.T)  # [groups, R]
    ranks = sizes.cumsum(0) - sizes + (sizes + 1) / 2
    return ranks.T[:, groups]
