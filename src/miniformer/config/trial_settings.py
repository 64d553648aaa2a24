"""Part of `TrainConfig`: settings that are chosen by short trial runs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from miniformer.config.strict import StrictConfig, option


@dataclasses.dataclass(frozen=True)
class TrialSettings(StrictConfig):
    """Trial runs before training.

    Args:
        auto: choose settings that are not given by short runs on a part of the training data,
            evaluated on another part of it: quick: the most important setting, in at most 15 % of
            the estimated time or of max_time; full: more settings, in at most 50 %; off; null: off.
    """

    heading: ClassVar[str] = "trials"

    auto: str | None = option(None, choices=("quick", "full", "off"))
