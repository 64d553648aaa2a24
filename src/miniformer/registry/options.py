"""Calls of components with options that a user gives."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from miniformer.registry.plugins import describe_error
from miniformer.utils.errors import UserError


def call_with_options(
    component: Any, name: str, options: Mapping[str, Any], *args: Any, label: str
) -> Any:
    """Calls a component with options.

    Args:
        component: the component.
        name: its name, for errors.
        options: keyword arguments.
        *args: arguments before them.
        label: the setting, for errors.

    Raises:
        UserError: see `check_options`; or the component refuses a value or fails.
    """
    check_options(component, name, options, num_args=len(args), label=label)
    try:
        return component(*args, **options)
    except UserError:
        raise
    except Exception as error:
        module = getattr(component, "__module__", None) or ""
        is_own = module.partition(".")[0] == __name__.partition(".")[0]
        if is_own and not isinstance(error, TypeError | ValueError):
            raise  # a mistake of this code
        refuses = isinstance(error, ValueError) or is_own
        reason = str(error) if refuses else describe_error(error, module)
        raise UserError(f"{label}: {name}: {reason}") from error


def check_options(
    component: Any, name: str, options: Mapping[str, Any], *, num_args: int, label: str
) -> None:
    """Checks the names of options.

    Args:
        component, name, options, label: see `call_with_options`.
        num_args: number of arguments before the options.

    Raises:
        UserError: an option is unknown or missing.
    """
    try:
        signature = inspect.signature(component)
    except (TypeError, ValueError):  # of a built-in function
        return
    if problem := _option_problem(signature, options, num_args):
        raise UserError(f"{label}: {name} {problem}")


def _option_problem(
    signature: inspect.Signature, options: Mapping[str, Any], num_args: int
) -> str | None:
    """Problem of the names of options; None: there is none."""
    parameters = [*signature.parameters.values()]
    if any(item.kind is item.VAR_POSITIONAL for item in parameters):
        num_args = 0
    parameters = [item for item in parameters[num_args:] if item.kind is not item.VAR_POSITIONAL]
    named = {item.name: item for item in parameters if item.kind is not item.VAR_KEYWORD}
    known = f"its options: {', '.join(named) or 'none'}"
    if len(named) == len(parameters):  # it takes no others
        for option in options:
            if option not in named:
                closest = difflib.get_close_matches(option, named, n=1)
                hint = f" (did you mean {closest[0]!r}?)" if closest else ""
                return f"has no option {option!r}{hint}; {known}"
    missing = [
        item.name
        for item in named.values()
        if item.default is item.empty and item.name not in options
    ]
    return f"needs the option {missing[0]!r}; {known}" if missing else None
