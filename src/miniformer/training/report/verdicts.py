"""Verdicts on a run: overfitting and what else its metrics show, each with what to try next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from miniformer.utils.formats import format_number, metric_label

_MIN_VALIDATIONS = 4  # fewer show no trend
_MIN_RISE = 0.05  # of the validation loss after its minimum, for overfitting
_MIN_RISE_OF_LOSS = 0.01  # nats, or variances of a regression; a smaller rise is noise
_MIN_TRAIN_FALL = 0.1  # of the training loss meanwhile
_END_SHARE, _MIN_END_IMPROVEMENT = 0.2, 0.02  # of a run that ends too early
_MIN_LEARNED = 0.02  # fall of the training loss over a run
_MAX_PADDING, _MAX_CUT_SHARE = 0.3, 0.01
_MAX_NAMES = 5  # classes in a message
_UP_TO_ONE = ("accuracy", "macro_f1", "micro_f1", "f1", "exact_match")  # metrics of at most 1

Points = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A finding about a run.

    Args:
        kind: overfitting, overconfidence, underfitting, no_learning, class, padding or truncation.
        text: what was found, and what to try, plain text.
    """

    kind: str
    text: str


def find_verdicts(
    rows: Sequence[dict[str, float]],
    *,
    metric: str = "loss",
    maximize: bool = False,
    stop_step: int | None = None,
    max_epochs: float | None = None,
    max_steps: int | None = None,
    interrupted: bool = False,
) -> list[Verdict]:
    """Verdicts from the metrics of a run.

    Args:
        rows: rows of `metrics.jsonl`.
        metric: the metric of the best model, without the prefix `val_`.
        maximize: larger values are better.
        stop_step: step of early stopping; later rows, from annealed weights, show no trend.
        max_epochs: passes over the data; None: unknown.
        max_steps: the limit of the run, if it has this one alone.
        interrupted: the run was interrupted, so that it may still improve.
    """
    saved_step = _best_step(rows, metric, maximize)
    rows = [row for row in rows if row["step"] <= (stop_step or math.inf)]
    train, loss = _points(rows, "train_loss"), _points(rows, "val_loss")
    verdicts = [*_no_learning(train)]
    best_step = _best_step(rows, metric, maximize)
    if len(loss) >= _MIN_VALIDATIONS and best_step is not None and saved_step is not None:
        verdicts += _overfitting(train, loss, metric, best_step, saved_step)
        is_complete = stop_step is not None or _is_perfect(rows, metric)
        if not verdicts and not is_complete and not interrupted:
            budget = "a longer --max_time"
            if max_epochs is not None:
                budget = f"--max_epochs {math.ceil(2 * max_epochs)} or {budget}"
            elif max_steps is not None:
                budget = f"--max_steps {2 * max_steps}"
            verdicts += _underfitting(train, loss, best_step, budget)
    return verdicts


def _is_perfect(rows: Sequence[dict[str, float]], metric: str) -> bool:
    """Returns whether the metric of the last validation is the highest possible."""
    values = _points(rows, f"val_{metric}")
    return metric in _UP_TO_ONE and len(values) > 0 and values[-1][1] >= 1.0


def _no_learning(train: Points) -> Iterator[Verdict]:
    if len(train) < 20:
        return
    size = len(train) // 5
    first, last = _mean(train[:size]), _mean(train[-size:])
    if last > first * (1 - _MIN_LEARNED):
        yield Verdict(
            "no_learning",
            f"not learning: the training loss does not fall ({_arrow(first, last)}); check that "
            "labels belong to their inputs, or try --find_lr true",
        )


def _overfitting(
    train: Points, loss: Points, metric: str, best_step: float, saved_step: float
) -> Iterator[Verdict]:
    step, lowest = min(loss, key=lambda point: point[1])
    later = [value for at, value in loss if at > step]
    if len(later) < 2 or later[-1] - lowest <= max(_MIN_RISE * abs(lowest), _MIN_RISE_OF_LOSS):
        return
    if min(later[len(later) // 2 :]) <= lowest + _MIN_RISE / 2 * abs(lowest):
        return  # noise, not a rise
    before, after = _smoothed(train, step), _smoothed(train, loss[-1][0])
    if before is None or after is None or after > before * (1 - _MIN_TRAIN_FALL):
        return
    text = (
        f"validation loss rises since step {format_number(step)} ({_arrow(lowest, later[-1])}) "
        f"while training loss falls ({_arrow(before, after)})"
    )
    steps = [at for at, _ in loss]
    if metric != "loss" and steps.index(best_step) - steps.index(step) >= 2:
        yield Verdict(
            "overconfidence",
            f"overconfidence: {text}, but {metric_label(metric)} improves until step "
            f"{format_number(best_step)}: the probabilities are too extreme; try "
            "--task_config.label_smoothing 0.1",
        )
        return
    yield Verdict(
        "overfitting",
        f"overfitting: {text}; the best model is from step {format_number(saved_step)}; try more "
        "data, --model_config.dropout 0.3, or a smaller --model_size or vocab_size",
    )


def _underfitting(train: Points, loss: Points, best_step: float, longer: str) -> Iterator[Verdict]:
    end = loss[-1][0]
    start = next(
        (value for at, value in reversed(loss) if at <= end * (1 - _END_SHARE)), loss[0][1]
    )
    before, after = _smoothed(train, end * (1 - _END_SHARE)), _smoothed(train, end)
    improved = loss[-1][1] < start - _MIN_END_IMPROVEMENT * abs(start)
    falls = before is not None and after is not None and after < before
    if improved and falls and best_step >= loss[-2][0]:
        yield Verdict(
            "underfitting",
            f"still improving at the end: validation loss {_arrow(start, loss[-1][1])} in the last "
            f"fifth of the run; try {longer}",
        )


def data_verdicts(
    *, padding: float = 0.0, num_cut: int = 0, num_examples: int = 0, max_seq_len: int = 0
) -> Iterator[Verdict]:
    """Verdicts about the batches of a run.

    Args:
        padding: padded fraction of the positions of training batches.
        num_cut, num_examples: training examples that were truncated, and all.
        max_seq_len: the limit of their length.
    """
    if padding > _MAX_PADDING:
        yield Verdict(
            "padding",
            f"padding: {padding:.0%} of the positions in training batches are padding; a larger "
            "--batch_size puts examples of more similar lengths together",
        )
    if num_cut > _MAX_CUT_SHARE * num_examples:
        yield Verdict(
            "truncation",
            f"truncation: {num_cut:,} of {num_examples:,} training examples are cut to "
            f"{max_seq_len} tokens; try --model_config.max_seq_len {2 * max_seq_len}",
        )


def class_verdicts(
    classes: Sequence[Any], split: str, *, has_weights: bool = False
) -> Iterator[Verdict]:
    """Verdicts about classes without examples, and classes that are never predicted.

    Args:
        classes: rows with `name`, `support` and `predicted`.
        split: name of the data, such as validation.
        has_weights: the task has class weights.
    """
    never = [row for row in classes if row.support and not row.predicted]
    missing = [row for row in classes if not row.support]
    if never and len(never) < len(classes):
        names = _names([f"{row.name} ({row.support:,} records)" for row in never])
        weights = ", or --task_config.class_weights balanced" if has_weights else ""
        yield Verdict(
            "class",
            f"never predicted on the {split} data: {names}; try more examples of it{weights}",
        )
    if missing:
        names = _names([str(row.name) for row in missing])
        yield Verdict(
            "class", f"no {split} examples: {names}; its metrics say nothing about such inputs"
        )


def _names(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _best_step(rows: Sequence[dict[str, float]], metric: str, maximize: bool) -> float | None:
    """Step of the best model; as in `BestModelCheckpoint`, the lower loss breaks ties."""
    losses = _points(rows, "val_loss")
    loss_of, sign = dict(losses), -1.0 if maximize else 1.0
    values = _points(rows, f"val_{metric}") or losses
    if not values:
        return None
    return min(values, key=lambda point: (sign * point[1], loss_of.get(point[0], math.inf)))[0]


def _points(rows: Sequence[dict[str, float]], key: str) -> Points:
    points = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    return sorted(dict(points).items())  # of a step that was repeated, the last value


def _smoothed(points: Points, step: float) -> float | None:
    """Mean of the values within a twentieth of the run around a step, at least three of them."""
    if not points:
        return None
    reach = points[-1][0] / 40
    near = [point for point in points if abs(point[0] - step) <= reach]
    if len(near) < 3:
        near = sorted(points, key=lambda point: abs(point[0] - step))[:3]
    return _mean(near)


def _mean(points: Points) -> float:
    return sum(value for _, value in points) / len(points)


def _arrow(first: float, last: float) -> str:
    return f"{first:.3g} -> {last:.3g}"
