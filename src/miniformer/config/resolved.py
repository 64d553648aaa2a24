"""Values of settings that a run determines itself, each with its reason."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class ResolvedSetting:
    """Value of a setting that is not given.

    Args:
        name: the setting.
        value: its value in the run.
        reason: why the run has this value, such as "default of muon".
    """

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value} ({self.reason})"
