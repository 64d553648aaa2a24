"""Checks of what a user passes to a `Pipeline`: inputs, prompts and batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miniformer.config import InputError, UserError


def check_batch_size(batch_size: Any) -> int | None:
    """The batch size, a positive integer or None.

    Raises:
        UserError: it is neither.
    """
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size must be a positive integer, not {batch_size!r}")
    return batch_size


def as_inputs(inputs: Any) -> Any:
    """A string, or a list or tuple of inputs; arrays and columns of frames become lists.

    Raises:
        UserError: the inputs are of another type.
    """
    to_list = getattr(inputs, "tolist", None) or getattr(inputs, "to_list", None)
    inputs = to_list() if callable(to_list) else inputs
    if isinstance(inputs, str | list | tuple):
        return inputs
    raise UserError(
        f"inputs must be one input or a list of them, not a {type(inputs).__name__}; records go "
        "to evaluate"
        if isinstance(inputs, dict)
        else f"inputs must be one input or a list of them, not a {type(inputs).__name__}"
    )


def check_texts(inputs: Sequence[Any]) -> None:
    """Checks the texts of inputs; one error lists all invalid inputs.

    Raises:
        InputError: a text contains an unpaired surrogate.
    """
    problems: dict[int, str] = {}
    for number, item in enumerate(inputs):
        for text in item if isinstance(item, list | tuple) else [item]:
            try:
                if isinstance(text, str):
                    check_text(text, f"input {number}")
            except UserError as error:
                problems[number] = str(error).removeprefix(f"input {number}")
    if problems:
        raise InputError(problems)


def check_prompts(prompts: Any, method: str = "generate", name: str = "prompts") -> list[str]:
    """Several prompts as a list.

    Args:
        prompts: a list of strings, or another sequence or column of them.
        method, name: name of the method and of its argument in messages.

    Raises:
        UserError: `prompts` is of another type.
    """
    if isinstance(prompts, str) or not (
        hasattr(prompts, "__len__") and hasattr(prompts, "__iter__")
    ):
        one = "" if method == "score" else "a string or "
        raise UserError(
            f"{method} takes {one}a list of strings as {name}, not a {type(prompts).__name__}"
        )
    items = list(prompts)
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise UserError(f"{name} {number} must be a string, not a {type(item).__name__}")
    return items


def check_text(text: str, name: str) -> None:
    """Checks that a string can be encoded as UTF-8.

    Raises:
        UserError: it contains an unpaired surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: character {error.start} is {text[error.start]!a}, an unpaired "
            f"surrogate; is the {name.split()[0]} UTF-8?"
        ) from None
