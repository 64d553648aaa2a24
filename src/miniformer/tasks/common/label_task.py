"""Base class of tasks with classes: classification, ordinal regression, multi-label classification.

It derives the classes and their counts from the training data, and handles unequal classes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from miniformer.config import TransformerConfig, UserError, option
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.batching.balancing import resample_rows
from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import LengthBucketBatcher
from miniformer.data.batching.loader import Batcher
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record, RecordError, Records
from miniformer.data.rules import are_unequal, group_similar_labels
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.sequence_input import InputTask

_MAX_RARE_LABELS_SHOWN = 5
_KINDS = {int: "a number", str: "a name"}


@dataclasses.dataclass(frozen=True)
class LabelTask(InputTask):
    """Base class of the tasks of `{"input": ..., "label": ...}` and `"labels": [...]` records.

    Args:
        classes: names or numbers of the classes, in the order of the model's outputs; null: those
            of the training data, sorted.
        class_weights: balanced, or a weight for each class, in the order of `classes`; null: all
            weights are 1.
        balanced_sampling: power of balanced sampling in training, from 0 to 1. Records of a class
            with n records are drawn in proportion to n ** -power; an epoch has as many records as
            the data. 1: each class is drawn equally often; 0: each record is drawn once.
        class_counts: training records of each class; null: counted.
        input_kind, input_dim, max_input_len, bpe_dropout, shared_token_types, standardize,
            feature_means, feature_stds: see `InputTask`.
    """

    classes: list[Any] | None = None
    class_weights: str | list[float] | None = None
    balanced_sampling: float = option(0.0, low=0.0, high=1.0)
    class_counts: list[int] | None = None

    def labels_of(self, record: Record) -> list[Any]:
        """Labels of a record that satisfies the schema."""
        raise NotImplementedError

    def balanced_weights(self, counts: list[int], total: int) -> list[float]:
        """Class weights that are `balanced`.

        Args:
            counts: training records of each class, at least 1 each.
            total: training records.
        """
        raise NotImplementedError

    def class_indices(self, chunk: ColumnarStore) -> np.ndarray:
        """Class of each example of a chunk for `balanced_sampling`, int [n]; -1: no class."""
        raise NotImplementedError

    def cross_check(self) -> list[str]:
        return [*super().cross_check(), *self._class_problems(), *self._weight_problems()]

    def _class_problems(self) -> list[str]:
        """Problem of the classes, if any."""
        if self.classes is None:
            return []
        invalid = [label for label in self.classes if schema.check_label(label) is not None]
        if invalid:
            return [f"classes must be names or integers, not {invalid[0]!r}"]
        if len({type(label) for label in self.classes}) > 1:
            return ["classes must be all names or all integers"]
        if len(set(self.classes)) != len(self.classes):
            return ["classes must differ from one another"]
        if len(self.classes) < 2:
            return [f"classes must be two or more, not {self.classes}"]
        return []

    def _weight_problems(self) -> list[str]:
        """Problems of the class weights and counts."""
        weights, problems = self.class_weights, []
        if isinstance(weights, str) and weights != "balanced":
            problems.append(f"class_weights must be balanced or a list, not {weights!r}")
        if isinstance(weights, list) and (
            any(weight < 0 for weight in weights) or not sum(weights)
        ):
            problems.append("class_weights must be at least 0, and not all of them 0")
        if weights == "balanced" and self.balanced_sampling:
            problems.append(
                "class_weights=balanced and balanced_sampling both correct for unequal classes; "
                "leave one of them out"
            )
        if self.class_counts is not None and any(count < 0 for count in self.class_counts):
            problems.append("class_counts must be at least 0")
        for name, noun in (("class_weights", "weights"), ("class_counts", "counts")):
            values = getattr(self, name)
            if not isinstance(values, list):
                continue
            if self.classes is None:
                problems.append(f"{name} need classes, whose order they follow; set classes, too")
            elif len(values) != len(self.classes):
                problems.append(f"{name} has {len(values)} {noun} for {len(self.classes)} classes")
        return problems

    def check_class(self, label: Any) -> str | None:
        """Checks a label, which must be one of the classes once they are known."""
        problem = schema.check_label(label)
        if problem is not None or self.classes is None or label in self.classes:
            return problem
        known = ", ".join(map(repr, self.classes[:10])) + ", ..." * (len(self.classes) > 10)
        return f"is {label!r}, which is none of the classes trained on: {known}"

    def fit(self, records: Records) -> Self:
        fitted = super().fit(records)
        if self.class_counts is not None and self.class_weights != "balanced":
            return fitted
        counts, total = self._count_labels(records)
        classes = self.sorted_classes(counts) if self.classes is None else self.classes
        if len(classes) < 2:
            problem = f"every label is {classes[0]!r}" if classes else "no record has a label"
            raise UserError(f"{records.name}: {problem}; there must be two classes or more")
        weights = self.class_weights
        if weights == "balanced":
            missing = [label for label in classes if not counts[label]]
            if missing:
                raise UserError(
                    f"{records.name}: class_weights=balanced, but no record is of class "
                    f"{missing[0]!r}"
                )
            weights = self.balanced_weights([counts[label] for label in classes], total)
        return dataclasses.replace(
            fitted,
            classes=classes,
            class_weights=weights,
            class_counts=self.class_counts or [counts[label] for label in classes],
        )

    def sorted_classes(self, counts: Counter[Any]) -> list[Any]:
        """Classes of the training data, in the order of the model's outputs."""
        return sorted(counts)

    def _count_labels(self, records: Records) -> tuple[Counter[Any], int]:
        """Number of records with each label, and of all records.

        Raises:
            RecordError: some labels are numbers and some are names.
        """
        counts: Counter[Any] = Counter()
        first: tuple[type, int] | None = None
        index = -1
        for index, record in enumerate(records):
            for label in self.labels_of(record):
                first = first or (type(label), index)
                if type(label) is not first[0]:
                    field = next(name for name in self.schema if name != "input")
                    problem = (
                        f"{field!r} is {label!r}, {_KINDS[type(label)]}, but that of "
                        f"{records.location(first[1])} is {_KINDS[first[0]]}; use one of them "
                        "throughout"
                    )
                    raise _record_error(records, index, problem)
                counts[label] += 1
        return counts, index + 1

    def data_warnings(self) -> Iterator[str]:
        yield from super().data_warnings()
        for group in group_similar_labels(self.classes or ()):
            yield (
                f"warning: classes {' and '.join(map(ascii, group))} differ only by spaces or "
                "Unicode normalization; spell them alike (miniformer data check names the lines)"
            )

    def record_warnings(self, records: Records) -> Iterator[str]:
        """Warnings about classes with one training record or none."""
        counts = dict(zip(self.classes or (), self.class_counts or (), strict=False))
        missing = [label for label, count in counts.items() if not count]
        if missing:
            names = ", ".join(map(repr, missing[:_MAX_RARE_LABELS_SHOWN]))
            more = ", ..." * (len(missing) > _MAX_RARE_LABELS_SHOWN)
            yield f"warning: no training record is of class {names}{more}; it cannot be learned"
        rare = {label for label, count in counts.items() if count == 1}
        if not rare:
            return
        shown: list[str] = []
        for index, record in enumerate(records):
            shown += [
                f"{label!r} ({records.location(index)})"
                for label in self.labels_of(record)
                if label in rare
            ]
            if len(shown) >= min(len(rare), _MAX_RARE_LABELS_SHOWN):
                break
        more = f" and {len(rare) - len(shown)} more" if len(rare) > len(shown) else ""
        if 2 * len(rare) > len(counts) and len(rare) > _MAX_RARE_LABELS_SHOWN:
            yield (
                f"warning: {len(rare):,} of {len(counts):,} labels occur once: check that the "
                "column of labels is not one of ids, texts or numbers"
            )
        yield (
            f"warning: labels that occur once: {', '.join(shown)}{more}; one record teaches little "
            "and may be a misspelling: correct it, add records, or leave it out"
        )

    def setting_notes(self) -> list[ResolvedSetting]:
        """Settings for unequal classes, if the classes are and no such setting is given."""
        counts = self.class_counts
        is_given = self.class_weights is not None or self.balanced_sampling
        if counts is None or is_given or not are_unequal(counts):
            return []
        classes = self.require_classes()
        large, small = counts.index(max(counts)), counts.index(min(counts))
        reason = (
            f"default; classes are unequal, {counts[large]:,} of {classes[large]!r} and "
            f"{counts[small]:,} of {classes[small]!r}: for rare ones try balanced, "
            "or balanced_sampling: 0.5"
        )
        return [ResolvedSetting("task_config.class_weights", None, reason)]

    def check(self, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        super().check(config, tokenizer)
        problem = "needs the number of records of each class, which a stream does not give"
        if self.class_weights == "balanced":
            raise UserError(f"task_config: class_weights=balanced {problem}; list the weights")
        if self.balanced_sampling and self.class_counts is None:
            raise UserError(f"task_config: balanced_sampling {problem}; set class_counts, too")

    def batcher(
        self,
        tokenizer: Tokenizer | None,
        *,
        seq_len: int,
        batch_size: int,
        batch_tokens: int | None,
        training: bool,
    ) -> Batcher:
        """Batcher of the examples; in training it samples them by `balanced_sampling`."""
        batcher = super().batcher(
            tokenizer,
            seq_len=seq_len,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            training=training,
        )
        if training and self.balanced_sampling:
            assert isinstance(batcher, LengthBucketBatcher)
            batcher.sample_rows = self._sample_rows
        return batcher

    def _sample_rows(self, chunk: ColumnarStore, rng: np.random.Generator) -> np.ndarray:
        """Rows of a chunk, drawn by `balanced_sampling`."""
        groups = self.class_indices(chunk)
        # A record without a class is drawn like one of the largest class.
        counts = np.array([*(self.class_counts or ()), max(self.class_counts or (1,))])
        weights = np.maximum(counts, 1.0) ** -self.balanced_sampling
        return resample_rows(groups, weights[groups], rng)

    def num_outputs(self) -> int:
        return len(self.require_classes())

    def require_classes(self) -> list[Any]:
        """The classes, in the order of the model's outputs.

        Raises:
            UserError: they are not known yet.
        """
        if self.classes is None:
            raise UserError(
                "the classes are not known yet; set classes in task_config, or call fit(records)"
            )
        return self.classes


def _record_error(records: Records, index: int, problem: str) -> UserError:
    """Error about a record, with its location."""
    location = records.location(index)
    file, _, line = location.rpartition(":")
    if line.isdigit():
        return RecordError(file, int(line), problem)
    return UserError(f"{location}: {problem}")
