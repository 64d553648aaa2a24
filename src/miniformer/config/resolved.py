"""Values of settings that a run determines itself, each with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Options of a task that a run determines from its data.
_AUTO_TASK_OPTIONS = ("prepend_bos", "shared_token_types", "target_delta_of")


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


def given_task_options(task_config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `task_config` without those that are auto or null."""
    return {
        name: value
        for name, value in task_config.items()
        if name not in _AUTO_TASK_OPTIONS or value not in ("auto", None)
    }
