"""Learning rate schedules: progress of the run in [0, 1] -> factor in [0, 1].

The progress refers to the budget of the run: steps, epochs or time (see `callbacks/budget.py`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from miniformer import registry
from miniformer.config import UserError


def check_schedule_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks the options of a schedule; those of the schedules here are shares.

    Raises:
        UserError: it does not have an option, or a share is not between 0 and 1.
    """
    if not options:
        return
    schedule = registry.get("scheduler", name)
    parameters = inspect.signature(schedule).parameters.values()
    known = [parameter.name for parameter in parameters][1:]  # the first is the progress
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if not known:
        raise UserError(f"scheduler={name} has no options; leave scheduler_config out")
    for option, value in options.items():
        if option not in known and not takes_any:
            subject = f"option of scheduler={name} in scheduler_config"
            raise UserError(registry.unknown_name_message(subject, option, known))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if schedule.__module__ == __name__ and not (is_number and 0 < value < 1):
            raise UserError(
                f"scheduler_config: {option} must be a number between 0 and 1, not {value!r}"
            )


def cosine(progress: float) -> float:
    """Cosine decay from 1 to 0 (Loshchilov & Hutter 2016)."""
    return (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float) -> float:
    """Linear decay from 1 to 0."""
    return 1 - progress


def wsd(progress: float, decay_ratio: float = 0.2) -> float:
    """Warmup-stable-decay (Hu et al. 2024): 1, then linear to 0 over the last fifth."""
    return min(1.0, (1 - progress) / decay_ratio)


def onecycle(progress: float, pct_start: float = 0.3, start_factor: float = 0.04) -> float:
    """Cosine from 1/25 up to 1 over 30 % of the run, then down to 0 (Smith & Topin 2017)."""
    if progress < pct_start:
        return start_factor + (1 - start_factor) * (1 - cosine(progress / pct_start))
    return cosine((progress - pct_start) / (1 - pct_start))


def none(progress: float) -> float:
    """Constant 1."""
    return 1.0
