"""Runs the registered checks on a model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from miniformer import registry
from miniformer.config import UserError
from miniformer.doctor.outcome import NotApplicable, Note, Outcome, Status
from miniformer.doctor.subject import Subject


def run_checks(
    subject: Subject, names: Sequence[str] | None = None, *, target: str = "DIR"
) -> Iterable[Outcome]:
    """Yields the outcome of each check as soon as it is known.

    Args:
        subject: the model.
        names: checks, of the registry kind `check`; None: all that can be imported.
        target: the model as the command line names it, for the command of an outcome.
    """
    if names is None:
        checks = registry.load_all("check")
    else:
        checks = ((name, registry.get("check", name)) for name in names)
    for name, check in checks:
        yield _run(subject, name, check, f"miniformer doctor {target} --check {name}")


def _run(subject: Subject, name: str, check: Any, command: str) -> Outcome:
    start_time = time.perf_counter()
    status: Status = "failed"
    lines: list[Any] = []
    try:
        arguments = subject.arguments(check)
        # The first parameter of a check of one's own may have any name.
        lines = [*check(**arguments)] if arguments else [*check(subject.model)]
    except NotApplicable as reason:
        status, lines = "does not apply", [Note(reason)]
    except UserError as error:
        lines = [error]
    except Exception as error:  # a broken model may raise anything
        lines = [f"{type(error).__name__}: {error}"]
    problems = tuple(str(line) for line in lines if not isinstance(line, Note))
    if not problems and status == "failed":
        status = "passed"
    return Outcome(
        name=name,
        status=status,
        summary=registry.summary("check", name),
        problems=problems,
        notes=tuple(line for line in lines if isinstance(line, Note)),
        command=command,
        seconds=time.perf_counter() - start_time,
    )
