"""Settings of the features of a wide head: a list of groups, each an object with its type."""

from __future__ import annotations

from typing import Any

# Settings of each type of features, with their defaults; None: must be given.
WIDE_FEATURES: dict[str, dict[str, Any]] = {
    "ngrams": {"size": None, "length": 3, "positions": False, "counts": False},
    "numbers": {"size": None},
    "statistics": {"size": None},
    "kernels": {"size": None, "width": None, "dilations": None},
    "fourier": {"size": None, "gamma": 1.0, "of": None},  # of: another group
}
_OF_VECTORS = ("numbers", "statistics", "kernels")  # the others: of token ids


def wide_feature_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Settings of a group of features, with the defaults of those that are not given."""
    return {**WIDE_FEATURES[group["type"]], **group}


def wide_feature_problems(groups: list[dict[str, Any]] | None, *, reads_vectors: bool) -> list[str]:
    """Problems of the `wide_head` of a model config.

    Args:
        groups: the field.
        reads_vectors: inputs of the model are vectors, not token ids.
    """
    if groups is None:
        return []
    if not groups:
        return ["wide_head must have a group of features, or be null"]
    problems = [problem for group in groups for problem in _group_problems(group)]
    if problems:
        return problems
    inputs = "vectors" if reads_vectors else "token ids"
    groups = [group.get("of", group) for group in groups]
    return [
        f"wide_head: {group['type']} has no effect on {inputs}; leave it out"
        for group in groups
        if (group["type"] in _OF_VECTORS) != reads_vectors
    ]


def _group_problems(group: dict[str, Any]) -> list[str]:
    kind = group.get("type")
    if not isinstance(kind, str) or kind not in WIDE_FEATURES:
        return [f"wide_head must have types of {', '.join(WIDE_FEATURES)}, not {kind!r}"]
    known, problems = WIDE_FEATURES[kind], []
    for name, value in {**known, **group}.items():
        if name == "type":
            continue
        if name not in known:
            problems.append(f"wide_head: unknown {name!r}; {kind} has {', '.join(known)}")
        elif value is None:
            problems.append(f"wide_head: {kind} needs {name}")
        elif isinstance(known[name], bool):
            if not isinstance(value, bool):
                problems.append(f"wide_head: {name} must be true or false, not {value!r}")
        elif name == "of":
            is_plain = isinstance(value, dict) and value.get("type") != kind
            problems += (
                _group_problems(value)
                if is_plain
                else [f"wide_head: of must be a group of features, not {value!r}"]
            )
        elif isinstance(known[name], float):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                problems.append(f"wide_head: {name} must be a number above 0, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"wide_head: {name} must be an integer of at least 1, not {value!r}")
    return problems
