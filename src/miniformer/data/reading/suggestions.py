"""Suggested flags for files whose columns have other names than the fields of the task."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

# Flags, and the fields whose columns they name.
FIELD_FLAGS: dict[str, tuple[str, ...]] = {
    "input_field": ("input", "source", "tokens"),
    "label_field": ("label", "labels", "value", "tags", "target"),
    "text_field": ("text",),
}

# Usual names of columns, the most usual first.
_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "input": (
        "text", "sentence", "review", "content", "comment", "utterance", "question", "query",
        "message", "tweet", "document", "body", "description", "title", "sms", "smiles", "sequence",
        "premise", "sentence1", "text1", "question1", "source",
    ),
    "label": (
        "category", "class", "intent", "sentiment", "emotion", "topic", "target", "y", "gold",
        "gold_label", "labels", "tag", "type", "label_text", "answer",
    ),
    "labels": ("label", "categories", "tags", "emotions", "topics", "classes", "genres"),
    "value": ("target", "y", "score", "rating", "label", "measured", "price", "output", "temp"),
    "source": ("src", "input", "lemma", "question", "article", "text", "en", "word"),
    "target": ("tgt", "output", "label", "translation", "answer", "summary", "form", "headline"),
    "text": ("content", "sentence", "document", "body", "review", "article", "story", "input"),
    "tokens": ("words", "form", "token", "sentence", "word", "input"),
    "tags": ("ner_tags", "ner", "pos_tags", "pos", "upos", "labels", "label", "bio", "tag"),
}  # fmt: skip
_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"),
    ("question1", "question2"), ("sentence_a", "sentence_b"), ("text_a", "text_b"),
    ("question", "context"), ("query", "passage"),
)  # fmt: skip


def suggest_flags(missing: Sequence[str], columns: Sequence[str]) -> str:
    """Flags that name the columns of missing fields, such as `--input_field text`; "": no idea.

    A field whose column is unknown has COLUMN as its name if another one is known.

    Args:
        missing: fields that the file lacks.
        columns: columns of the file.
    """
    chosen: dict[str, list[str]] = {}
    left = list(columns)
    for field in missing:
        if names := _find(field, left):
            chosen[field] = names
            left = [name for name in left if name not in names]
    left = [name for name in left if not _is_id(name)]
    for field in missing:  # one field and one column are left
        if field not in chosen and len(missing) - len(chosen) == 1 and len(left) == 1:
            chosen[field] = [left[0]]
    parts = []
    for field in missing:
        flag = next((flag for flag, fields in FIELD_FLAGS.items() if field in fields), None)
        if flag is not None and chosen:
            parts.append(f"--{flag} {_quote(chosen[field]) if field in chosen else 'COLUMN'}")
    return " ".join(parts)


def _find(field: str, columns: Sequence[str]) -> list[str]:
    """Columns that probably hold a field; empty: none."""
    by_key = {_key(name): name for name in reversed(columns)}
    if field == "input":
        for pair in _PAIRS:
            if all(_key(name) in by_key for name in pair):
                return [by_key[_key(name)] for name in pair]
    for usual in (field, *_USUAL_NAMES.get(field, ())):
        if _key(usual) in by_key:
            return [by_key[_key(usual)]]
    for usual in (field, *_USUAL_NAMES.get(field, ())):  # a part of a longer name
        for name in columns:
            if len(usual) > 3 and _key(usual) in _key(name):
                return [name]
    return []


def _is_id(name: str) -> bool:
    key = _key(name)
    return key in ("index", "idx", "uuid", "column1") or key.endswith("id")


def _key(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def _quote(names: Sequence[str]) -> str:
    if any("," in name for name in names):
        return shlex.quote(json.dumps(list(names), ensure_ascii=False))
    return shlex.quote(",".join(names))
