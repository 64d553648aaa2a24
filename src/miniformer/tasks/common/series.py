"""Series: the choice of the feature that a regression's value is the next number of.

A series target is learned as a change from the feature's last number, in units of how much the
feature moves. This pays where the value really is of the same level and units as the feature; where
it is not (Kelvin and Celsius), it makes the target noise. So the choice is judged on training
records that it was not made from.
"""

from __future__ import annotations

import numpy as np

from miniformer.data.reading import schema
from miniformer.data.reading.records import Records
from miniformer.data.reading.schema import features_to_array

SCALE_EPSILON_RATIO = (
    0.05  # of how much a feature moves on average; added to how much it moves in an input
)
_MAX_RECORDS = 10_000  # records that are looked at
_MIN_RECORDS = 10
_HOLDOUT_EVERY = 5  # every fifth record
_MAX_DISTANCE_RATIO = (
    0.75  # share of the values' spread that their distance from the feature may be at most
)
# A series target may have that much more error than a plain one in a linear model, and a share of
# the values' spread on top: it pays off where values leave the range of training.
_MAX_ERROR_RATIO, _ERROR_TOLERANCE = 1.25, 0.05


def detect_series_feature(records: Records) -> int | None:
    """The number of the feature that values are the next of, from 0; None: of none.

    The nearest feature is adopted if, on held-out records, its last number is nearer to the value
    (root mean square) than 3/4 of the values' spread around the mean of the others, and a linear
    model of the series target does not do worse than one of the plain target.

    Args:
        records: with `input` and `value`; up to 10,000 of them, evenly spaced, are read.
    """
    rows = np.unique(
        np.linspace(0, len(records) - 1, min(_MAX_RECORDS, len(records))).astype(np.int64)
    )
    some = records.read(rows)
    if len(some) < _MIN_RECORDS or schema.input_kind(some[0]["input"]) != "features":
        return None
    inputs = [features_to_array(record["input"], np.float64) for record in some]  # [T_i, F] each
    if all(len(vectors) == 1 for vectors in inputs):
        return None
    values = np.array([float(record["value"]) for record in some])
    held = np.arange(len(some)) % _HOLDOUT_EVERY == _HOLDOUT_EVERY - 1
    last = np.array([vectors[-1] for vectors in inputs])  # [n, F]
    nearest = int(np.argmin(((values[:, None] - last)[~held] ** 2).mean(0)))
    by_mean = _rms(values[held] - values[~held].mean())
    if not _rms(values[held] - last[held, nearest]) < _MAX_DISTANCE_RATIO * by_mean:
        return None
    columns = [vectors[:, nearest] for vectors in inputs]
    plain, series = _linear_model_errors(values, columns, held)
    return (
        nearest
        if series <= min(by_mean, _MAX_ERROR_RATIO * plain + _ERROR_TOLERANCE * by_mean)
        else None
    )


def _linear_model_errors(
    values: np.ndarray, columns: list[np.ndarray], held_out: np.ndarray
) -> tuple[float, float]:
    """Errors on held-out records, in the units of the data, of linear models of both targets.

    Both read the feature's last number and its mean; the second as `Regression` has it in a series.
    """
    last = np.array([column[-1] for column in columns])
    middle = np.array([column.mean() for column in columns])
    moves = np.array([column.std() for column in columns])
    scales = moves + (SCALE_EPSILON_RATIO * float(moves[~held_out].mean()) or 1.0)
    center = float(values[~held_out].mean())  # taken off for the sake of numbers far from 0
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
    """Predictions for all records of a least-squares fit to those that are not held out, [n]."""
    design = np.column_stack([np.ones(len(target)), features])
    found, *_ = np.linalg.lstsq(design[~held_out], target[~held_out], rcond=None)
    return np.asarray(design @ found)


def _rms(numbers: np.ndarray) -> float:
    return float(np.sqrt((numbers**2).mean()))
