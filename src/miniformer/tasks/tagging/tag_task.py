"""Base class of token classification: tags of the training data, their scheme and their checks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

from miniformer.config import UserError, option
from miniformer.data.reading import schema
from miniformer.data.reading.records import Records
from miniformer.data.reading.schema import RecordCheck, Schema
from miniformer.data.rules import group_similar_labels
from miniformer.tasks.base import Task
from miniformer.tasks.tagging.schemes import (
    SCHEMES,
    complete_tags,
    detect_scheme,
    invalid_tag,
    is_valid_transition,
    parse_tag,
)

_MAX_RARE_TAGS_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class TagTask(Task):
    """Base class of the task of `{"tokens": [...], "tags": [...]}` records.

    Args:
        classes: the tags, in the order of the model's outputs; null: those of the training data,
            sorted; of a tag scheme, with all prefixes of each type of span.
        scheme: iob2 (BIO), iob1, iobes or bilou, if tags are spans; none, if they are classes of
            their own; auto: detected.
        check_tags: tags that the scheme does not allow are errors; false: they are read as in
            seqeval's default mode, where an I- may begin a span.
        class_counts: training tokens of each class; null: counted.
    """

    classes: list[Any] | None = None
    scheme: str = option("auto", choices=("auto", "none", *SCHEMES))
    check_tags: bool = True
    class_counts: list[int] | None = None

    @property
    def has_spans(self) -> bool | None:
        """True if tags are those of a scheme; None: not known before `fit`."""
        if self.scheme == "auto" and self.classes is None:
            return None
        return self.resolved_scheme != "none"

    @cached_property
    def resolved_scheme(self) -> str:
        """The scheme; of `auto` that of the classes, such as for a stream."""
        if self.scheme != "auto":
            return self.scheme
        return detect_scheme({(tag, None): 0 for tag in self.require_classes()})

    def require_classes(self) -> list[Any]:
        """The tags, in the order of the model's outputs.

        Raises:
            UserError: they are not known yet.
        """
        if self.classes is None:
            raise UserError(
                "the classes are not known yet; set classes in task_config, or call fit(records)"
            )
        return self.classes

    def span_types(self) -> list[str]:
        """Types of spans, sorted."""
        parsed = filter(None, map(parse_tag, self.require_classes() if self.has_spans else ()))
        return sorted({tag.type for tag in parsed} - {""})

    def cross_check(self) -> list[str]:
        classes, counts = self.classes, self.class_counts
        if counts is not None and (classes is None or len(counts) != len(classes)):
            return ["class_counts needs one number for each of the classes"]
        if classes is None:
            return []
        invalid = [tag for tag in classes if schema.check_label(tag) is not None]
        if invalid:
            return [f"classes must be names or integers, not {invalid[0]!r}"]
        if len({type(tag) for tag in classes}) > 1:
            return ["classes must be all names or all integers"]
        if len(set(classes)) != len(classes):
            return ["classes must differ from one another"]
        return [f"classes must be two or more, not {classes}"] if len(classes) < 2 else []

    @property
    def schema(self) -> Schema:
        return {"tokens": schema.check_tokens, "tags": RecordCheck(self._check_tags)}

    def _check_tags(self, record: Mapping[str, Any]) -> str | None:
        tags, classes = record["tags"], self.classes
        problem = schema.check_tags(tags, len(record["tokens"]))
        if problem is not None or (classes is None and self.scheme == "auto"):
            return problem
        unknown = [n for n, tag in enumerate(tags) if classes is not None and tag not in classes]
        if unknown and classes is not None:
            known = ", ".join(map(repr, classes[:10])) + ", ..." * (len(classes) > 10)
            return (
                f"has {tags[unknown[0]]!r} at token {unknown[0] + 1}, which is none of the tags "
                f"trained on: {known}"
            )
        if self.check_tags and self.resolved_scheme != "none":
            problem = invalid_tag(tags, self.resolved_scheme)
            hint = "; or set check_tags=false in task_config to accept such tags"
            return None if problem is None else problem + hint
        return None

    def fit(self, records: Records) -> Self:
        """Counts the tags, and detects their scheme.

        Raises:
            RecordError: a tag is not valid in the scheme, or is a number where others are names.
            UserError: all tags are the same.
        """
        counts: Counter[Any] = Counter()
        transitions: Counter[tuple[Any, Any]] = Counter()
        kind: type | None = None
        for index, record in enumerate(records):
            tags = record["tags"]
            kind = kind or type(tags[0])
            if not all(type(tag) is kind for tag in tags):
                raise UserError(
                    f"{records.location(index)}: 'tags' has names where others are numbers; use "
                    "one of them throughout"
                )
            counts.update(tags)
            transitions.update(pairwise([None, *tags, None]))
        classes, scheme = self.classes, self.scheme
        if scheme == "auto":
            scheme = detect_scheme(transitions)
        if classes is None:
            classes = sorted(counts) if scheme == "none" else complete_tags(counts, scheme)
        if len(classes) < 2:
            raise UserError(
                f"{records.name}: every tag is {classes[0]!r}; there must be two or more"
            )
        fitted = dataclasses.replace(
            self,
            classes=classes,
            scheme=scheme,
            class_counts=self.class_counts or [counts[tag] for tag in classes],
        )
        parsed = {tag: parse_tag(tag) for tag in counts}
        if scheme != "none" and self.check_tags:
            valid = all(
                is_valid_transition(scheme, parsed.get(a), parsed.get(b)) for a, b in transitions
            )
            if not valid or None in parsed.values():
                list(records.with_schema(fitted.schema))  # raises, with the line of the tag
        return fitted

    def pre_run_warnings(self, metric: str) -> Iterator[str]:
        if metric not in self.metrics:
            raise UserError(
                f"checkpoint_metric={metric} needs tags of a scheme, such as B-PER and I-PER, and "
                f"these are classes of their own; use {self.metrics[0]}"
            )
        return iter(())

    def data_warnings(self) -> Iterator[str]:
        for group in group_similar_labels(self.classes or ()):
            yield (
                f"warning: tags {' and '.join(map(ascii, group))} differ only by spaces or Unicode "
                "normalization; spell them alike"
            )

    def record_warnings(self, records: Records) -> Iterator[str]:
        """Warnings about tags of one training token."""
        counts = zip(self.classes or (), self.class_counts or (), strict=False)
        rare = {tag for tag, count in counts if count == 1}
        shown: list[str] = []
        for index, record in enumerate(records if rare else ()):
            for number, tag in enumerate(record["tags"], 1):
                if tag in rare and len(shown) < _MAX_RARE_TAGS_SHOWN:
                    shown.append(f"{tag!r} ({records.location(index)}, token {number})")
        if shown:
            more = f" and {len(rare) - len(shown)} more" if len(rare) > len(shown) else ""
            yield (
                f"warning: tags that occur once: {', '.join(shown)}{more}; one token teaches "
                "little and may be a misspelling"
            )
