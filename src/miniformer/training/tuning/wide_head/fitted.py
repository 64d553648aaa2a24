"""Result of the fit of a wide head."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from miniformer.config.resolved import ResolvedSetting


@dataclasses.dataclass
class FittedHead:
    """A wide head, fitted to the training data.

    Args:
        setting: of the settings of the run.
        groups: `wide_head` of the model config.
        state: values of the head's buffers by name.
    """

    setting: ResolvedSetting
    groups: list[dict[str, Any]]
    state: dict[str, Tensor]
