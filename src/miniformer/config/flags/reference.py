"""Descriptions of config fields, from their docstrings and limits, and a template of a config.

`--print_config` and the page `docs/configuration.md` are made of them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, get_type_hints

from docstring_parser import DocstringStyle, parse

from miniformer import registry
from miniformer.config.strict import StrictConfig, describe_type

_TEMPLATE_WIDTH = 98
_REFERENCE = re.compile(r"see `(\w+)`([.;]?)")  # to the class that describes a field


@dataclasses.dataclass(frozen=True)
class FieldDescription:
    """A field of a config.

    Args:
        name: the field.
        type: its type in the words of JSON, such as "an integer or null".
        default: its default, as JSON.
        limits: allowed values, such as "at least 1"; empty: any of the type.
        meaning: its line in the docstring.
    """

    name: str
    type: str
    default: Any
    limits: str
    meaning: str


def describe_fields(config: type[StrictConfig]) -> list[tuple[str, list[FieldDescription]]]:
    """The fields of a config below the headings of its parts; without parts, below one heading."""
    parts = config_parts(config)
    return [(getattr(part, "heading", ""), _describe_part(part)) for part in parts]


def config_parts(config: type[StrictConfig]) -> list[type[StrictConfig]]:
    """The classes that declare the fields of a config in parts, in order; or the class itself."""
    parts = [base for base in reversed(config.__bases__) if "heading" in vars(base)]
    return parts or [config]


def config_template(config: type[StrictConfig], values: Mapping[str, Any]) -> str:
    """YAML with all fields of a config, each with its meaning in a comment.

    Args:
        config: the config class.
        values: given values; the other fields have their defaults.
    """
    lines = []
    for heading, fields in describe_fields(config):
        lines += [f"# {heading} ".ljust(_TEMPLATE_WIDTH, "-"), ""]
        for field in fields:
            text = f"{field.meaning} ({field.type}{field.limits and '; '}{field.limits})"
            lines += textwrap.wrap(
                text, _TEMPLATE_WIDTH, initial_indent="# ", subsequent_indent="# ",
                break_on_hyphens=False,
            )  # fmt: skip
            value = values.get(field.name, field.default)
            lines += [f"{field.name}: {json.dumps(value, ensure_ascii=False)}", ""]
    return "\n".join(lines)


def _describe_part(config: type[StrictConfig]) -> list[FieldDescription]:
    hints, meanings = get_type_hints(config), _meanings(config)
    described = []
    for field in dataclasses.fields(config):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        described.append(
            FieldDescription(
                field.name,
                describe_type(hints[field.name]),
                default,
                _describe_limits(field),
                meanings.get(field.name, ""),
            )
        )
    return described


def _meanings(config: type[StrictConfig]) -> dict[str, str]:
    """The arguments in the docstrings of a class and of its bases, by name."""
    meanings: dict[str, str] = {}
    for part in reversed(config.__mro__):
        for param in parse(part.__doc__ or "", DocstringStyle.GOOGLE).params:
            for name in re.split(r",\s*", param.arg_name):
                text = " ".join((param.description or "").split()).rstrip(".")
                meanings[name] = _with_reference(text, name, part)
    return meanings


def _with_reference(text: str, name: str, config: type) -> str:
    """A meaning such as "see `InputTask`" with that of the same field of that class."""
    match = _REFERENCE.match(text)
    if match is None:
        return text
    bases = {base.__name__: base for base in config.__mro__[1:]}
    source = bases.get(match[1]) or getattr(sys.modules[config.__module__], match[1])
    return _meanings(source)[name] + match[2] + text[match.end() :]


def allowed_values(field: dataclasses.Field[Any]) -> list[str]:
    """Names that a field allows: its choices, or the built-in names of its registry kinds."""
    kinds = (field.metadata.get("of") or "").split(",")
    names = [name for kind in filter(None, kinds) for name in registry.builtin_names(kind)]
    return names or list(field.metadata.get("choices") or [])


def _describe_limits(field: dataclasses.Field[Any]) -> str:
    limits = [
        f"{phrase} {field.metadata[name]:,}"
        for name, phrase in (("low", "at least"), ("above", "above"), ("high", "at most"))
        if field.metadata.get(name) is not None
    ]
    return ", ".join(allowed_values(field) or limits)
