"""Learning rate schedules: progress of the run in [0, 1] -> factor in [0, 1].

The progress refers to the budget of the run: steps, epochs or time (see `callbacks/budget.py`).
"""

from __future__ import annotations

import math


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
