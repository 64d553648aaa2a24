"""Results of the checks of a model."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Status = Literal["passed", "failed", "does not apply"]


class Note(str):
    """A line of information that a check returns among its problems, such as a measured number."""

    __slots__ = ()


class NotApplicable(Exception):
    """Raised by a check that does not apply to a model; its text says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one check.

    Attributes:
        name: the check's name in the registry.
        status: passed, failed or does not apply.
        summary: what holds if the check passes.
        problems: what does not hold, a line each.
        notes: information, such as measured numbers; of a check that does not apply, the reason.
        command: the command that runs the check alone.
        seconds: time of the check.
    """

    name: str
    status: Status
    summary: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    command: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The attributes as values of JSON."""
        return {**dataclasses.asdict(self), "seconds": round(self.seconds, 2)}

    def lines(self) -> list[str]:
        """Text for the terminal: the result, and a line for each problem and note."""
        first = f"{self.status.upper() if self.problems else self.status:<16}{self.name}"
        if self.status != "does not apply":
            first += f": {self.summary}"
        elif self.notes:
            first += f": {self.notes[0]}"
        notes = self.notes if self.status != "does not apply" else self.notes[1:]
        return [first, *(f"{'':<16}{line}" for line in (*self.problems, *notes))]
