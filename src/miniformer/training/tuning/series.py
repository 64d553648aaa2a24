"""Series detection: the feature whose next number is a regression's target.

A series target is the change from the feature's last number, divided by the feature's standard
deviation within the input. This helps if target and feature have the same level and unit; else
(Kelvin and Celsius) the target becomes noise. The choice is therefore checked on held-out training
records.
"""

from __future__ import annotations

import numpy as np

from miniformer.data.reading.records import Records
from miniformer.data.reading.schema import features_to_array
from miniformer.tasks.regression import SCALE_EPSILON_RATIO

_MAX_RECORDS = 10_000  # records that are read
_MIN_RECORDS = 10
_HOLDOUT_EVERY = 5  # every fifth record
_MAX_DISTANCE_RATIO = 0.75  # maximum RMS distance of values from the feature, in stds of values
# Maximum error of a series target in a linear model: this multiple of the plain target's error plus
# this multiple of the values' std. A series target extrapolates better beyond the training range.
_MAX_ERROR_RATIO, _ERROR_TOLERANCE = 1.25, 0.05


def detect_series_feature(records: Records) -> int | None:
    """Index of the feature whose next number is the target; None: no such feature.

    The nearest feature is used if two checks on held-out records pass. The RMS distance of its last
    number from the value is below 3/4 of the RMS distance from the mean of the other records, and a
    linear model of the series target is not worse than one of the plain target.

    Args:
        records: with `input`, vectors, and `value`; up to 10,000, evenly spaced, are read.
    """
    rows = np.unique(
        np.linspace(0, len(records) - 1, min(_MAX_RECORDS, len(records))).astype(np.int64)
    )
    sample = records.read(rows)
    inputs = [features_to_array(record["input"], np.float64) for record in sample]  # [T_i, F]
    if len(sample) < _MIN_RECORDS or all(len(vectors) == 1 for vectors in inputs):
        return None
    values = np.array([float(record["value"]) for record in sample])
    held_out = np.arange(len(sample)) % _HOLDOUT_EVERY == _HOLDOUT_EVERY - 1
    last = np.array([vectors[-1] for vectors in inputs])  # [n, F]
    nearest = int(np.argmin(((values[:, None] - last)[~held_out] ** 2).mean(0)))
    mean_error = _rms(values[held_out] - values[~held_out].mean())
    distance = _rms(values[held_out] - last[held_out, nearest])
    if not distance < _MAX_DISTANCE_RATIO * mean_error:
        return None
    columns = [vectors[:, nearest] for vectors in inputs]
    plain, series = _linear_model_errors(values, columns, held_out)
    limit = min(mean_error, _MAX_ERROR_RATIO * plain + _ERROR_TOLERANCE * mean_error)
    return nearest if series <= limit else None


def _linear_model_errors(
    values: np.ndarray, columns: list[np.ndarray], held_out: np.ndarray
) -> tuple[float, float]:
    """RMS errors of linear models of the plain and the series target on held-out records.

    Both models read the feature's last number and its mean; the second normalized as in
    `Regression`. Errors are in the units of the data.
    """
    last = np.array([column[-1] for column in columns])
    middle = np.array([column.mean() for column in columns])
    stds = np.array([column.std() for column in columns])
    scales = stds + (SCALE_EPSILON_RATIO * float(stds[~held_out].mean()) or 1.0)
    center = float(values[~held_out].mean())  # subtracted for precision with numbers far from 0
    plain = _least_squares_predictions(
        np.stack([last - center, middle - last], 1), values - center, held_out
    )
    series = _least_squares_predictions(
        ((middle - last) / scales)[:, None], (values - last) / scales, held_out
    )
    return (
        _rms((center + plain - values)[held_out]),
        _rms((last + scales * series - values)[held_out]),
    )


def _least_squares_predictions(
    features: np.ndarray, target: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Predictions for all records, [n], of a least-squares fit to those not held out."""
    design = np.column_stack([np.ones(len(target)), features])
    coefficients, *_ = np.linalg.lstsq(design[~held_out], target[~held_out], rcond=None)
    return np.asarray(design @ coefficients)


def _rms(numbers: np.ndarray) -> float:
    return float(np.sqrt((numbers**2).mean()))
