"""Kinds of the values of records: one number, a list of numbers, or an object of numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from miniformer.data.reading import schema


class ValueKind(NamedTuple):
    """Kind of the values of a data set.

    Args:
        num_values: numbers of a list or an object; None: a value is one number.
        names: keys of an object; None: a value has none.
    """

    num_values: int | None
    names: list[str] | None

    def find_problem(self, value: Any, *, is_known: bool) -> str | None:
        """Problem of a value of a record; None: it has only finite numbers, and is of this kind.

        Args:
            value: of a record.
            is_known: False: the first value decides the kind, so any kind is right.
        """
        kind = type(value)
        if kind not in (list, dict):
            problem = schema.check_number(value)
            if problem is None and not (self.num_values is None and self.names is None):
                return f"is one number, where others are {self}"
            return problem
        if not value:
            return "is empty; it needs at least one number"
        names = list(value) if kind is dict else range(1, len(value) + 1)
        for name, item in zip(names, value.values() if kind is dict else value, strict=True):
            if (problem := schema.check_number(item)) is not None:
                return f"has {name!r}, which {problem}"
        is_object = self.names is not None
        if is_known and (
            self.num_values not in (None, len(value))
            or (self.num_values is None and self.names is None)
            or is_object != (kind is dict)
            or (is_object and set(value) != set(self.names or ()))
        ):
            actual = (
                f"has the keys {', '.join(map(repr, value))}"
                if kind is dict
                else f"is a list of {len(value)}"
            )
            return f"{actual}, where others are {self}"
        return None

    def __str__(self) -> str:
        if self.names is not None:
            return f"objects with the keys {', '.join(map(repr, self.names))} (value_names)"
        return (
            "one number" if self.num_values is None else f"lists of {self.num_values} (num_values)"
        )

    def to_numbers(self, value: Any) -> np.ndarray:
        """The numbers of a value, float64 [outputs]."""
        if self.names is not None:
            value = [value[name] for name in self.names]
        return np.array(value, np.float64).reshape(-1)

    def from_numbers(self, numbers: list[float]) -> Any:
        """The value of the numbers of the outputs."""
        if self.names is not None:
            return dict(zip(self.names, numbers, strict=True))
        return numbers[0] if self.num_values is None else numbers
