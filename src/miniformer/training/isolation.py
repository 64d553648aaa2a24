"""Isolation of a run from the process that it runs in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from miniformer.training.resume.rng_state import get_rng_state, set_rng_state

# Set by Lightning for seeds and deterministic algorithms.
_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG")


@contextlib.contextmanager
def isolated_run() -> Iterator[None]:
    """Context that restores, at its end, what a run sets for the whole process.

    These are the states of the random number generators, the choice of deterministic algorithms,
    and environment variables of both. So a run is the same whatever ran before it, and a program
    that trains between its own random draws gets the draws that it would get without training.
    """
    rng_state = get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        yield
    finally:
        set_rng_state(rng_state)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
