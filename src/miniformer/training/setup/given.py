"""User callbacks: objects, or functions that return them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from miniformer.config import UserError

CallbackOrFactory = L.Callback | Callable[[], L.Callback]


def build_callbacks(callbacks: Sequence[CallbackOrFactory]) -> list[L.Callback]:
    """Returns the callbacks, with factories called.

    Raises:
        UserError: an item is neither a callback nor a function that returns one.
    """
    built = []
    for item in callbacks:
        callback: Any = item if isinstance(item, L.Callback) or not callable(item) else item()
        if not isinstance(callback, L.Callback):
            raise UserError(
                f"callbacks: {item!r} is no lightning.Callback, nor a function that returns one"
            )
        built.append(callback)
    return built


def pickle_callbacks(callbacks: Sequence[CallbackOrFactory]) -> bytes:
    """Pickles callbacks for other processes.

    Pickling by torch would share the memory of tensors between processes.

    Raises:
        UserError: a callback cannot be pickled.
    """
    for item in callbacks:
        try:
            pickle.dumps(item)
        except Exception as error:
            name = getattr(item, "__qualname__", type(item).__qualname__)
            raise UserError(
                f"callbacks: {name} cannot be copied to the processes of several devices: "
                f"{error}; pass a class or function of a module that returns it, or start your "
                "own script with torchrun"
            ) from None
    return pickle.dumps(list(callbacks))
