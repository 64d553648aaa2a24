"""Schemas: checks of record fields by name, and conversion of checked fields.

A check takes a value and returns None, or a phrase that follows the quoted name of the field:
`'label' must not be empty`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from miniformer.config.strict import TYPE_NAMES

FieldCheck = Callable[[Any], str | None]


@dataclasses.dataclass(frozen=True)
class RecordCheck:
    """Check of a field against the other fields of its record, of which those before it are valid.

    Args:
        check: record -> None, or a phrase as of a `FieldCheck`.
    """

    check: Callable[[Mapping[str, Any]], str | None]


@dataclasses.dataclass(frozen=True)
class DerivedCheck:
    """Check of a field that a record without it may have in another form.

    Args:
        check: see `FieldCheck`.
        derive: record without the field -> value of the field, or None.
        sources: checks of the fields that the value may be derived from, so that messages name
            them.
    """

    check: FieldCheck
    derive: Callable[[Mapping[str, Any]], Any]
    sources: Mapping[str, FieldCheck]

    def __call__(self, value: Any) -> str | None:
        return self.check(value)


Checks = Mapping[str, FieldCheck | RecordCheck]
Schema = Mapping[str, FieldCheck | RecordCheck | type]

# Missing field, and a field that a record has -> what the user probably wants.
FIELD_HINTS = {
    ("label", "labels"): "for several labels use task multilabel_classification",
    ("label", "value"): "for numbers use task regression",
    ("labels", "label"): "for one label use task classification",
    ("value", "label"): "for classes use task classification",
}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_HINT = "the maximum of float32 is 3.4e+38, so scale it down"


def check_text(value: Any) -> str | None:
    """Checks for a string, which may be empty."""
    return None if isinstance(value, str) else f"must be a string, not {_describe_value(value)}"


def check_text_or_parts(value: Any) -> str | None:
    """Checks for a string, or a list of {"text": string, "learn": true or false}."""
    if isinstance(value, str):
        return None
    if not isinstance(value, list):
        return f"must be a string or a list of parts, not {_describe_value(value)}"
    if not value:
        return "is an empty list; it needs a part, or leave the record out"
    for number, part in enumerate(value, 1):
        if not isinstance(part, dict):
            example = '{"text": "...", "learn": false}'
            return f"part {number} is {_describe_value(part)}; each is an object such as {example}"
        if not isinstance(part.get("text"), str):
            text = _describe_value(part["text"]) if "text" in part else "nothing"
            return f"part {number} has {text} as text; it must be a string"
        if not isinstance(part.get("learn", True), bool):
            learn = _describe_value(part["learn"])
            return f"part {number} has {learn} as learn; it must be true or false"
        if unknown := [name for name in part if name not in ("text", "learn")]:
            return f"part {number} has {unknown[0]!r}; a part has only text and learn"
    return None


def check_source(value: Any) -> str | None:
    """Checks for a text or feature vectors."""
    problem = None if isinstance(value, str) else check_model_input(value)
    if isinstance(value, str) or (problem is None and input_kind(value) == "features"):
        return None
    is_vectors = isinstance(value, list) and bool(value) and isinstance(value[0], list | dict)
    if problem is not None and is_vectors:
        return problem
    return f"must be a string or a list of vectors, not {_describe_value(value)}"


def check_label(value: Any) -> str | None:
    """Checks for a class number or a class name."""
    if isinstance(value, str) and not value.strip():
        return "is an empty name; give the class a name or a number, or leave the record out"
    if value is None:
        return "is null; give the class a name or a number, or leave the record out"
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return None
    shown = repr(value) if _is_finite(value) else _describe_value(value)
    return f"must be an integer or a name, not {shown}"


def check_number(value: Any) -> str | None:
    """Checks for a finite number within the range of float32."""
    if not _is_finite(value):
        return f"must be a finite number, not {_describe_value(value)}"
    return f"is {float(value):g}; {_FLOAT32_HINT}" if abs(value) > _FLOAT32_MAX else None


def check_model_input(value: Any) -> str | None:
    """Checks for a text, a pair of texts, or feature vectors; see `input_kind`."""
    if isinstance(value, str):
        return None
    if not isinstance(value, list):
        return f"must be a string, two strings or a list of vectors, not {_describe_value(value)}"
    if not value:
        return "is an empty list; it needs two strings, or at least one vector"
    if all(isinstance(item, str) for item in value):
        count = f"{len(value)} string{'s' * (len(value) > 1)}"
        return None if len(value) == 2 else f"must be a string, two strings or vectors, not {count}"
    if isinstance(value[0], dict):
        return _check_objects(value)
    if isinstance(value[0], list):
        return _check_vectors(value)
    return (
        "must be a string, two strings or a list of vectors, not a list of "
        f"{_describe_value(value[0])}"
    )


def input_kind(value: Any) -> Literal["text", "pair", "features"]:
    """Kind of a valid model input: a text, a pair of texts, or feature vectors."""
    if isinstance(value, str):
        return "text"
    return "pair" if isinstance(value[0], str) else "features"


def features_to_array(value: Sequence[Any], dtype: type = np.float32) -> np.ndarray:
    """Feature vectors as an array [T, input_dim]; keys of objects are sorted."""
    if isinstance(value[0], dict):
        names = sorted(value[0])
        value = [[item[name] for name in names] for item in value]
    return np.asarray(value, dtype=dtype)


def check_tokens(value: Any) -> str | None:
    """Checks for a list of tokens: at least one, none of them empty."""
    if not isinstance(value, list):
        return f"must be a list of tokens, not {_describe_value(value)}"
    if not value:
        return "is an empty list; leave the record out"
    for number, token in enumerate(value, 1):
        if not isinstance(token, str):
            return f"has {_describe_value(token)} as token {number}; each must be a string"
        if not token:
            return f"has an empty string as token {number}; leave it out, and its tag"
    return None


def check_tags(value: Any, num_tokens: int) -> str | None:
    """Checks for a list of names or numbers, one for each token."""
    if not isinstance(value, list):
        return f"must be a list of tags, not {_describe_value(value)}"
    for number, tag in enumerate(value, 1):
        if (problem := check_label(tag)) is not None:
            return f"has a tag at token {number} that {problem}"
    if len(value) != num_tokens:
        return f"has {len(value)} tags, but there are {num_tokens} tokens; each needs one tag"
    return None


def compile_schema(schema: Schema) -> Checks:
    """Replaces types in a schema with checks."""
    return {
        name: partial(_check_type, check) if isinstance(check, type) else check
        for name, check in schema.items()
    }


def _check_type(expected_type: type, value: Any) -> str | None:
    if isinstance(value, expected_type):
        return None
    expected = TYPE_NAMES.get(expected_type, expected_type.__name__)
    return f"must be {expected}, not {_describe_value(value)}"


def _check_vectors(value: list[Any]) -> str | None:
    if _is_matrix(value):
        return None
    for i, vector in enumerate(value, 1):
        if not isinstance(vector, list):
            return f"vector {i} is {_describe_value(vector)}; each must be a list of numbers"
        if not vector:
            return f"vector {i} is empty; each needs at least one number"
        if problem := _check_finite(enumerate(vector, 1)):
            return f"vector {i} {problem}"
        if len(vector) != len(value[0]):
            return (
                f"vector {i} has {len(vector)} numbers, the first has {len(value[0])}; "
                "all must have the same length"
            )
    return None


def _check_objects(value: list[Any]) -> str | None:
    names = value[0].keys()
    same_names = all(isinstance(item, dict) and item.keys() == names for item in value)
    if same_names and _is_matrix([list(map(item.__getitem__, names)) for item in value]):
        return None
    for i, item in enumerate(value, 1):
        if not isinstance(item, dict):
            return (
                f"object {i} is {_describe_value(item)}; each must be an object with the same keys"
            )
        if not item:
            return f"object {i} is empty; each needs at least one number"
        for name in names - item.keys():
            return f"object {i} has no {name!r}, which the first has; all need the same keys"
        for name in item.keys() - names:
            return f"object {i} has {name!r}, which the first lacks; all need the same keys"
        if problem := _check_finite((repr(name), number) for name, number in item.items()):
            return f"object {i} {problem}"
    return None


def _is_matrix(rows: list[Any]) -> bool:
    """Returns whether rows are a matrix of finite numbers, without a Python loop over numbers."""
    kinds: set[type] = set()
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(rows, dtype=np.float32)
        for row in rows:
            kinds.update(map(type, row))  # numpy converts true and "1" to numbers
    except (ValueError, TypeError, OverflowError):
        return False
    is_2d = array.ndim == 2 and array.shape[1] > 0
    return is_2d and kinds <= {int, float} and bool(np.isfinite(array).all())


def _check_finite(named_values: Iterable[tuple[object, Any]]) -> str | None:
    for name, value in named_values:
        if not _is_finite(value):
            return f"contains {_describe_value(value)} at {name}; each must be a finite number"
        if abs(value) > _FLOAT32_MAX:
            return f"contains {float(value):g} at {name}; {_FLOAT32_HINT}"
    return None


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _describe_value(value: Any) -> str:
    """Description of a value in messages: its type, or the value if that is more informative."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not _is_finite(value):
        return "an integer too large for a number"
    return TYPE_NAMES.get(type(value), f"a {type(value).__name__}")
