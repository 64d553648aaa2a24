"""Results of an evaluation of token classification: counts of tags and spans, and their table."""

from __future__ import annotations

from typing import Any

import numpy as np

from miniformer.tasks.common.record_results import RecordResults, confusion_matrix
from miniformer.tasks.common.resampling import divide, macro_f1, sum_records, weighted_mean
from miniformer.tasks.tagging.span_metrics import precision_recall_f1
from miniformer.tasks.tagging.tagged_words import TaggedWords


def tag_counts(tagged: TaggedWords) -> np.ndarray:
    """Correct, predicted and true words of each sequence and class, int64 [S, C, 3]."""
    assert tagged.labels is not None
    size, num_classes = len(tagged.records), len(tagged.classes)
    first_cells = num_classes * np.repeat(np.arange(size), np.diff(tagged.starts))
    correct = tagged.predictions == tagged.labels
    cells = (
        (first_cells + tagged.labels)[correct],
        first_cells + tagged.predictions,
        first_cells + tagged.labels,
    )
    counts = [np.bincount(cell, minlength=size * num_classes) for cell in cells]
    return np.stack(counts, -1).reshape(size, num_classes, 3)


def make_results(
    tagged: TaggedWords, span_types: list[str], span_counts: np.ndarray | None
) -> RecordResults:
    """Results of each record; predictions and truths are lists of tags.

    A record is correct if all of its tags are; its score is the product of their probabilities.

    Args:
        tagged: with labels and losses.
        span_types: the classes of the report, if tags are spans.
        span_counts: correct, predicted and true spans, int [S, types, 3]; None: tags are classes.
    """
    assert tagged.labels is not None
    assert tagged.losses is not None
    num_words = tagged.sums(np.ones(len(tagged.labels)))
    counts = tag_counts(tagged)
    statistics = {"tags": counts}
    classes: dict[str, Any] = {
        "classes": tagged.classes,
        "confusion": confusion_matrix(tagged.labels, tagged.predictions, len(tagged.classes)),
    }
    if span_counts is not None:
        statistics["spans"] = span_counts
        classes = {"classes": span_types, "class_counts": span_counts.sum(0)}
    return RecordResults(
        records=tagged.records,
        predictions=tagged.tags(tagged.predictions),
        truths=tagged.tags(tagged.labels),
        losses=tagged.sums(tagged.losses) / num_words,
        weights=num_words,
        correct=counts[:, :, 0].sum(1) == num_words,
        scores=np.exp(tagged.sums(np.log(tagged.scores.astype(np.float64)))),
        statistics=statistics,
        **classes,
    )


def resampled_tag_metrics(results: RecordResults, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of resamples, float64 [R] each; see `Task.resampled_metrics`."""

    def sums(name: str) -> np.ndarray:
        values = results.statistics[name]  # [N, K, 3]
        return sum_records(counts, values.reshape(len(values), -1)).reshape(
            len(counts), *values.shape[1:]
        )

    tags = sums("tags")  # [R, C, 3]
    correct, predicted, true = np.moveaxis(tags, -1, 0)
    metrics = {
        "loss": weighted_mean(counts, results.losses, results.weights),
        "accuracy": divide(correct.sum(-1), true.sum(-1)),
        "macro_f1": macro_f1(correct, predicted, true),
    }
    if "spans" in results.statistics:
        names = ("span_precision", "span_recall", "span_f1")
        values = precision_recall_f1(sums("spans").sum(1))
        metrics |= dict(zip(names, values, strict=True))
    return metrics


def counts_table(header: str, names: list[str], counts: np.ndarray, unit: str) -> str:
    """Markdown table of precision, recall, F1 and number of true items.

    Args:
        header: of the names.
        names: names of K classes.
        counts: correct, predicted and true items, int [K, 3].
        unit: header of the number of true items.
    """
    columns = (*precision_recall_f1(counts), counts[:, 2])
    lines = [
        f"| {name} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {count:,} |"
        for name, precision, recall, f1, count in zip(
            (name.replace("|", "\\|") for name in names), *columns, strict=True
        )
    ]
    return "\n".join(
        [f"| {header} | precision | recall | F1 | {unit} |", "|---|---|---|---|---|", *lines]
    )
