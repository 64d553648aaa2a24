"""Settings of data with several weighted sources: [{"path": ..., "weight": ...}, ...]."""

from __future__ import annotations

import math
from typing import Any

_KEYS = {"path", "weight"}


def has_weights(value: Any) -> bool:
    """True for a list of weighted sources, of which some may be invalid; not for records."""
    if not isinstance(value, list | tuple):
        return False
    return any(isinstance(item, dict) and "path" in item and item.keys() <= _KEYS for item in value)


def source_problems(name: str, value: Any) -> list[str]:
    """Problems of a list with weighted sources, one a message; none of other lists.

    Args:
        name: the setting.
        value: its value: a list, or text that should be one.
    """
    if isinstance(value, str):
        example = '[{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]'
        return [f"{name} must be a path, or a list in JSON such as {example}, not {value!r}"]
    if not any(isinstance(item, dict) for item in value):
        return []
    problems = []
    for index, item in enumerate(value):
        field = f"{name}[{index}]"
        if not isinstance(item, dict) or item.keys() != _KEYS:
            problems.append(
                f'{field} must be an object with path and weight, such as {{"path": "a.jsonl", '
                f'"weight": 2}}, like the other sources, not {item!r}'
            )
            continue
        path, weight = item["path"], item["weight"]
        paths = path if isinstance(path, list) else [path]
        if not paths or not all(isinstance(part, str) and part for part in paths):
            problems.append(f"{field}: path must be a path or a list of paths, not {path!r}")
        if (problem := weight_problem(weight)) is not None:
            problems.append(f"{field}: weight {problem}")
    return problems


def weight_problem(weight: Any) -> str | None:
    """Problem of the weight of a source; None: it is valid."""
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if is_number and 0 < weight < math.inf:
        return None
    return f"must be a number above 0, not {weight!r}; leave out sources that are not used"
