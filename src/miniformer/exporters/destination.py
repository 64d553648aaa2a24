"""Destinations: what an exporter takes, and the packages that it needs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from miniformer.config import UserError

Exporter = Callable[..., str | None]


class DifferenceError(UserError):
    """The files of an exporter differ from the model by more than rounding."""


class Destination(NamedTuple):
    """Facts about an exporter.

    Args:
        takes: the models that can go there, such as "decoder-only models of the Llama family".
        runtime: the program that executes the files.
        extra: extra of this package with what the exporter needs; empty: none.
        packages: names of the packages in it that must be importable.
    """

    takes: str
    runtime: str
    extra: str = ""
    packages: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def install_command(self) -> str:
        """The command that installs the packages."""
        return f'pip install "miniformer[{self.extra}]"'


def destination(
    takes: str, *, runtime: str, extra: str = "", packages: tuple[str, ...] = ()
) -> Callable[[Exporter], Exporter]:
    """Decorates an exporter with its `Destination`, and checks the packages before each call.

    Args:
        takes, runtime, extra, packages: see `Destination`.
    """
    facts = Destination(takes, runtime, extra, packages)

    def decorate(exporter: Exporter) -> Exporter:
        @functools.wraps(exporter)
        def checked(*args: Any, **options: Any) -> str | None:
            if missing := facts.missing():
                raise UserError(
                    f"this export needs the package {missing[0]}; {facts.install_command()}"
                )
            return exporter(*args, **options)

        checked.destination = facts  # type: ignore[attr-defined]
        return checked

    return decorate


def facts_of(exporter: Any) -> Destination | None:
    """The `Destination` of an exporter; None: it states none."""
    facts = getattr(exporter, "destination", None)
    return facts if isinstance(facts, Destination) else None
