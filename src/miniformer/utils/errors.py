"""User errors and warnings about plugins, which every layer may raise."""

from __future__ import annotations

import json
import re
from typing import ClassVar

# Of a message: a command of a shell, which stays as it is; or a flag with its keys and its value.
_COMMAND = r"`[^`]*`|(?:\bminiformer [a-z]|-m miniformer|\btorchrun )[^;`)]*"
_FLAG = r"(?<![\w-])--(?P<name>[a-z]\w*(?:-\w+)*)(?P<keys>(?:\.\w+)*)"
_NO_VALUE = r"(?:and|as|by|for|if|is|needs|or|to|with)\b"  # words that may follow a flag
_VALUE = r"'[^']*'|\"[^\"]*\"|[^\s'\"(;:]*[^\s'\"(;:.,)]"
_SETTING = re.compile(rf"{_COMMAND}|{_FLAG}(?: (?!{_NO_VALUE})(?P<value>{_VALUE}))?")


class UserError(ValueError):
    """Invalid user input; the message gives the value, the limit and the fix.

    A message names a setting as a flag with a value, such as `--encoding latin-1`. A command prints
    it so; elsewhere it is the argument `encoding='latin-1'`.
    """

    num_commands: ClassVar[int] = 0  # commands that run in this process, one within another

    def __str__(self) -> str:
        message = super().__str__()
        return message if UserError.num_commands else flags_as_arguments(message)


class PluginWarning(UserWarning):
    """A component of an installed package is skipped."""


def flags_as_arguments(message: str) -> str:
    """A message whose flags are arguments of a Python function; commands of a shell are kept.

    `--lr 0.1` is `lr=0.1`, `--model_config.dropout 0.3` is `model_config={'dropout': 0.3}`,
    `--no-verify` is `verify=False`, `--options '{"a": 1}'` is `a=1`, and a flag without a value is
    its name.
    """
    return _SETTING.sub(_as_argument, message)


def _as_argument(match: re.Match[str]) -> str:
    name, text = match["name"], match["value"]
    if name is None:
        return match[0]
    if name.startswith("no-"):
        return f"{name[3:]}=False" + (f" {text}" if text else "")
    if text is None:
        return name + match["keys"]
    try:
        value = json.loads(text[1:-1] if text[0] in "'\"" else text)
    except ValueError:
        value = text[1:-1] if text[0] in "'\"" else text
    for key in reversed(match["keys"].split(".")[1:]):
        value = {key: value}
    items = value if name == "options" and isinstance(value, dict) else {name: value}
    more = "," if match.string.startswith(" --", match.end()) else ""
    return ", ".join(f"{key}={item!r}" for key, item in items.items()) + more
