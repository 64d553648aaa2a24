"""Bootstrap confidence intervals of metrics, and paired tests of two models.

Percentile bootstrap (Efron & Tibshirani 1993): the metric of resamples of the records, drawn with
replacement. Where all resamples are equal it has no width: proportions have Wilson's interval then
(Wilson 1927), and other metrics have none.

Papers: paired bootstrap, Koehn 2004; McNemar's exact test, McNemar 1947.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator

import numpy as np

LEVEL = 0.95  # of the intervals
_CHUNK_DRAWS = 2**22  # drawn records in memory
_MAX_DRAWS = 2**28  # of all resamples; of more records there are fewer resamples
_MIN_RESAMPLES = 100

ResampledMetrics = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Settings of a bootstrap.

    Args:
        num_resamples: number of resamples; 0: no intervals. Of very many records fewer are drawn.
        seed: seed of the draws.
    """

    num_resamples: int = 1000
    seed: int = 0

    def counts(self, num_records: int) -> Iterator[np.ndarray]:
        """Times that each resample contains each record, int64 [R, N], in chunks of resamples."""
        limit = max(_MIN_RESAMPLES, _MAX_DRAWS // max(1, num_records))
        left, rng = min(self.num_resamples, limit), np.random.default_rng(self.seed)
        while left:
            rows = min(left, max(1, _CHUNK_DRAWS // num_records))
            drawn = rng.integers(0, num_records, (rows, num_records))
            drawn += np.arange(rows)[:, None] * num_records
            counts = np.bincount(drawn.ravel(), minlength=rows * num_records)
            yield counts.reshape(rows, num_records)
            left -= rows

    def metrics(self, num_records: int, metrics_fn: ResampledMetrics) -> dict[str, np.ndarray]:
        """Metrics of all resamples, float64 [R] each.

        Args:
            num_records: N.
            metrics_fn: metrics of a chunk of resamples; see `Task.resampled_metrics`.
        """
        chunks = [metrics_fn(counts) for counts in self.counts(num_records)]
        names = chunks[0] if chunks else ()
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of resampled values; None: there are none.

    Resamples in which the metric is not defined are left out.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of Wilson's score test of a proportion (Wilson 1927).

    It has a width also where all records are right, and no resample differs.

    Args:
        share: of the records, within [0, 1].
        count: number of records, at least 1.
    """
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))  # rounded


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of a difference from its resampled values: no difference is 0."""
    differences = differences[np.isfinite(differences)]
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def mcnemar_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value of McNemar's exact test.

    Args:
        first, second: correctness of two models on the same records, bool [N].
    """
    fewer, more = sorted((int((first & ~second).sum()), int((second & ~first).sum())))
    total = fewer + more
    log_half = total * math.log(0.5)
    log_terms = (
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) + log_half
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, log_terms)))
