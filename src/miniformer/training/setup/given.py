"""Callbacks that a user gives: objects, or functions that make them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from miniformer.config import UserError

CallbackOrFactory = L.Callback | Callable[[], L.Callback]


def build_callbacks(callbacks: Sequence[CallbackOrFactory]) -> list[L.Callback]:
    """The callbacks themselves.

    Raises:
        UserError: one is none, and makes none.
    """
    made = []
    for each in callbacks:
        callback: Any = each if isinstance(each, L.Callback) or not callable(each) else each()
        if not isinstance(callback, L.Callback):
            raise UserError(
                f"callbacks: {each!r} is no lightning.Callback, and no function that makes one"
            )
        made.append(callback)
    return made


def pickle_callbacks(callbacks: Sequence[CallbackOrFactory]) -> bytes:
    """Callbacks to be copied to other processes; `pickle.loads` unpacks them there.

    They are packed here since torch would have the processes share the memory of tensors.

    Raises:
        UserError: one cannot be copied.
    """
    for each in callbacks:
        try:
            pickle.dumps(each)
        except Exception as error:
            name = getattr(each, "__qualname__", type(each).__qualname__)
            raise UserError(
                f"callbacks: {name} cannot be copied to the processes of several devices: {error}; "
                "give a class or function of a module that makes it, or start a script of your own "
                "with torchrun"
            ) from None
    return pickle.dumps(list(callbacks))
