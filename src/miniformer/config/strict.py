"""Strict dataclass configs: every field is checked, and all problems are reported together."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from miniformer import registry
from miniformer.config.errors import ConfigError, RenamedWarning, UserError
from miniformer.utils.jsonl import read_json

# In the words of JSON.
TYPE_NAMES: dict[type, str] = {
    str: "a string", int: "an integer", float: "a number", bool: "true or false",
    list: "a list", dict: "an object", types.NoneType: "null",
}  # fmt: skip
FLOAT32_MAX = 3.4e38  # larger values overflow in float32 arithmetic


def option(
    default: Any,
    *,
    kind: str | None = None,
    paths: bool = False,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    example: str | None = None,
) -> Any:
    """Dataclass field with limits; numbers must always be finite.

    Args:
        default: default value.
        kind: registry kind, or several, comma-separated; the value must be a registered name, or a
            list of names with options (see `registry.build`).
        paths: import paths are names, too.
        choices: allowed values.
        low: inclusive lower bound.
        above: exclusive lower bound.
        high: inclusive upper bound.
        example: values of the right type, for the message about another one.
    """
    limits = {"low": low, "above": above, "high": high}
    metadata = {"of": kind, "paths": paths, "choices": choices, "example": example, **limits}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class StrictConfig:
    """Base class of configs: typed, with limits, no unknown keys, all problems in one error."""

    # Former names of fields, each with the current one.
    former_names: ClassVar[Mapping[str, str]] = {}
    _given: ClassVar[frozenset[str]] = frozenset()  # of an instance: names of the given fields

    def __init_subclass__(cls) -> None:
        # `dataclass` would generate a `__hash__` that fails on dict and list fields.
        if "__hash__" not in cls.__dict__:
            cls.__hash__ = StrictConfig.__hash__  # type: ignore[method-assign]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Checks the names of keyword arguments, and notes which fields are given.

        A subclass with an `__init__` of its own has arguments of its own.
        """
        owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
        parameters = vars(owner).get("__dataclass_params__")
        if parameters is None or not parameters.init:
            return super().__new__(cls)
        known = [field.name for field in dataclasses.fields(cls)]
        if not kwargs.keys() <= set(known):
            raise ConfigError(cls.__name__, cls._unknown_fields([*kwargs], known))
        config = super().__new__(cls)
        object.__setattr__(config, "_given", frozenset([*known[: len(args)], *kwargs]))
        return config

    @classmethod
    def _unknown_fields(cls, names: list[str], known: list[str]) -> list[str]:
        return [
            f"{name} is the former name of {cls.former_names[name]}; use {cls.former_names[name]}"
            if name in cls.former_names
            else registry.unknown_name_message("field", name, known)
            for name in names
            if name not in known
        ]

    def non_default_fields(self) -> dict[str, Any]:
        """Fields that differ from their defaults."""
        changed = {}
        for field in dataclasses.fields(self):
            value, factory = getattr(self, field.name), field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            if value != default:
                changed[field.name] = value
        return copy.deepcopy(changed)

    def given_fields(self) -> dict[str, Any]:
        """Fields that were given, also at their defaults; null is as left out.

        Of a config with all fields, such as a result of `dataclasses.replace`: those that differ
        from their defaults.
        """
        names, given = [field.name for field in dataclasses.fields(self)], self._given
        given = frozenset() if len(given) == len(names) else given
        values = {name: getattr(self, name) for name in names if name in given}
        values = {name: value for name, value in values.items() if value is not None}
        return {**copy.deepcopy(values), **self.non_default_fields()}

    def __hash__(self) -> int:
        values = (_freeze(getattr(self, field.name)) for field in dataclasses.fields(self))
        return hash((type(self), *values))

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values, problems = self.current_names(given)
        for name, value in values.items():
            if isinstance(value, dict | list):  # the caller may modify the original later
                value = copy.deepcopy(value)
            object.__setattr__(self, name, value)
        problems += self._problems()
        if problems:
            raise ConfigError(type(self).__name__, problems)

    def cross_check(self) -> list[str]:
        """Problems between fields; called only when every single field is valid."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def current_names(
        cls, values: Mapping[str, Any], *, warn: bool = True
    ) -> tuple[dict[str, Any], list[str]]:
        """Replaces former names of fields and of registered parts by the current ones.

        Args:
            values: values by field; unknown fields are kept.
            warn: emit a `RenamedWarning` for each former name.

        Returns:
            The values under current names, and a problem for each field that has both names.
        """
        fields = dataclasses.fields(cls)
        known = {field.name for field in fields}
        former = {key: name for key, name in cls.former_names.items() if key not in known}
        current, problems = rename_keys(values, former, warn=warn)
        for field in fields:
            value = current.get(field.name)
            for kind in filter(None, (field.metadata.get("of") or "").split(",")):
                if isinstance(value, str) and (name := registry.current_name(kind, value)) != value:
                    current[field.name] = name
                    if warn:
                        _warn_renamed(f"{field.name}={value}", f"{field.name}={name}")
        return current, problems

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, stored: bool = False) -> Self:
        """Builds the config; unknown keys are errors.

        Args:
            values: values by field.
            stored: read from a file that Miniformer wrote: former names need no warning.

        Raises:
            ConfigError: all problems, with the closest known name for each unknown key.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                cls.__name__,
                [f"expected an object with fields by name, not {type(values).__name__} {values!r}"],
            )
        values, problems = cls.current_names(values, warn=not stored)
        known = [field.name for field in dataclasses.fields(cls)]
        problems += [
            registry.unknown_name_message("field", key, known) for key in values if key not in known
        ]
        try:
            config = cls(**{key: value for key, value in values.items() if key in known})
        except ConfigError as error:
            raise ConfigError(cls.__name__, problems + error.problems) from None
        if problems:
            raise ConfigError(cls.__name__, problems)
        return config

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads a JSON file written from `to_dict`.

        Raises:
            UserError: the file is missing, not a JSON object, or not a valid config.
        """
        try:
            values = read_json(Path(path))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{path}: not JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected a JSON object, found {type(values).__name__}")
        try:
            return cls.from_dict(values, stored=True)
        except ConfigError as error:
            raise UserError(f"{path}: {error}") from None

    def _problems(self) -> list[str]:
        config: Any = type(self)  # mypy takes it for unhashable
        hints = _field_types(config)
        problems = []
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if not _matches_type(value, hint):
                problems.append(_type_problem(field, hint, value))
            elif value is not None:
                problems += _limit_problems(field, value)
        return problems or self.cross_check()


@functools.cache
def _field_types(config: type) -> dict[str, Any]:
    """Types by field; evaluating the annotations takes milliseconds."""
    return get_type_hints(config)


def rename_keys(
    values: Mapping[str, Any], former_names: Mapping[str, str], *, warn: bool
) -> tuple[dict[str, Any], list[str]]:
    """Replaces former names of keys; see `StrictConfig.current_names`."""
    renamed, problems = {}, []
    for key, value in values.items():
        name = former_names.get(key, key)
        if name != key and name in values:
            problems.append(f"{key} is the former name of {name}; leave {key} out")
            continue
        if name != key and warn:
            _warn_renamed(key, name)
        renamed[name] = value
    return renamed, problems


def _warn_renamed(former: str, current: str) -> None:
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("miniformer."):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"{former} is deprecated and will be removed; use {current}",
        RenamedWarning,
        stacklevel=level,
    )


def _type_problem(field: dataclasses.Field[Any], hint: Any, value: Any) -> str:
    example = field.metadata.get("example")
    such_as = f", such as {example}" if example else ""
    return f"{field.name} must be {describe_type(hint)}{such_as}, not {value!r}"


def _limit_problems(field: dataclasses.Field[Any], value: Any) -> list[str]:
    kinds, choices = (field.metadata.get(key) for key in ("of", "choices"))
    if choices and value not in choices:
        return [f"{field.name} must be one of {', '.join(choices)}, not {value!r}"]
    paths = field.metadata.get("paths", False)
    if kinds and (isinstance(value, list | dict) or (paths and value is not None)):
        return registry.setting_problems(kinds, value, label=field.name, paths=paths)
    if kinds:
        known = [name for kind in kinds.split(",") for name in registry.names(kind)]
        return [] if value in known else [registry.unknown_name_message(field.name, value, known)]
    if isinstance(value, int | float):
        limits = {key: field.metadata.get(key) for key in ("low", "above", "high")}
        return number_problems(field.name, value, **limits)
    return []


def number_problems(
    name: str,
    value: float,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> list[str]:
    """At most one problem of a number, with the limit; see `option` for the arguments."""
    if low is not None and not value >= low:  # `not >=` also catches NaN
        return [f"{name} must be at least {low}, not {value}"]
    if above is not None and not value > above:
        return [f"{name} must be above {above}, not {value}"]
    if high is not None and not value <= high:
        return [f"{name} must be at most {high}, not {value}"]
    if not abs(value) <= FLOAT32_MAX:
        return [f"{name} must be a finite number of at most {FLOAT32_MAX}, not {value}"]
    return []


def _freeze(value: Any) -> Any:
    """Hashable form of a JSON value; equal values give equal results."""
    if isinstance(value, dict):
        return frozenset((key, _freeze(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return value


def _matches_type(value: Any, annotation: Any) -> bool:
    """Returns whether a JSON value has the annotated type: an int is a float, a bool is not."""
    if annotation is Any:
        return True
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_matches_type(value, member) for member in get_args(annotation))
    base_type = get_origin(annotation) or annotation
    if base_type in (int, float) and isinstance(value, bool):
        return False
    if base_type is list:
        (item_type,) = get_args(annotation) or (Any,)
        return isinstance(value, list) and all(_matches_type(item, item_type) for item in value)
    return isinstance(value, (int, float) if base_type is float else base_type)


def describe_type(annotation: Any) -> str:
    """An annotated type in the words of JSON, such as "an integer or null"."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(describe_type(member) for member in get_args(annotation))
    base_type = get_origin(annotation) or annotation
    return TYPE_NAMES.get(base_type) or str(base_type.__name__)
